"""Operations between a norm and the next convolution: channels are removed, or held by the named operation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import syncbn
from tests.policy import strangers
from tests.policy.pruned import Net, check
from tests.policy.strangers import images, seeded

# Operation between norm and convolution, and the number of channels that half of the 8 are, or what holds them.
MIDDLES: dict[str, tuple[Callable[..., Any], int | str]] = {
    "relu": (F.relu, 4),
    "in place": (lambda x: F.relu_(x), 4),
    "silu": (F.silu, 4),
    "gelu": (F.gelu, 4),
    "hardswish": (F.hardswish, 4),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), 4),
    "tanh, abs, square": (lambda x: x.tanh().abs().square(), 4),
    "clamp": (lambda x: x.clamp(-1, 2), 4),
    "clamp from 1": (lambda x: x.clamp(1, 2), "reads something else than 0"),
    "sigmoid": (torch.sigmoid, "convolution in out reads something else than 0 where γ and β are 0"),
    "hardsigmoid": (F.hardsigmoid, "reads something else than 0"),
    "softplus": (F.softplus, "reads something else than 0"),
    "cos": (torch.cos, "reads something else than 0"),
    "plus one": (lambda x: x + 1, "reads something else than 0"),
    "plus one, in place": (lambda x: x.add_(1), "reads something else than 0"),
    "one minus": (lambda x: 1 - x, "reads something else than 0"),
    "plus one, minus one": (lambda x: x + 1 - 1, "reads something else than 0"),
    "times two": (lambda x: 2 * x / 3, 4),
    "its own gate": (lambda x: x * torch.sigmoid(x), 4),
    "scripted": (strangers.swish, 4),
    "softmax over channels": (lambda x: x.softmax(1), "_softmax"),
    "softmax over positions": (lambda x: x.flatten(2).softmax(2).view_as(x), "reads something else than 0"),
    "mean over channels": (lambda x: x - x.mean(1, keepdim=True), "mean"),
    "max over channels": (lambda x: x * x.amax(1, keepdim=True).sigmoid(), "amax"),
    "mean over positions": (lambda x: x - x.mean((2, 3), keepdim=True), 4),
    "norm over channels": (lambda x: F.normalize(x, dim=1), "linalg_vector_norm"),
    "layer norm": (lambda x: F.layer_norm(x, x.shape[1:]), "native_layer_norm"),
    "layer norm over rows": (lambda x: F.layer_norm(x, x.shape[3:]), 4),
    "instance norm": (F.instance_norm, 4),
    "group norm": (lambda x: F.group_norm(x, 2), "native_group_norm"),
    "local response": (lambda x: F.local_response_norm(x, 3), "avg_pool3d"),
    "cumsum over channels": (lambda x: x.cumsum(1), "cumsum"),
    "sorted channels": (lambda x: x.sort(1).values, "sort"),
    "pooling": (lambda x: F.avg_pool2d(x, 3, 1, 1) + F.max_pool2d(x, 3, 1, 1), 4),
    "lp pooling": (lambda x: F.lp_pool2d(x.abs(), 2, 2), 4),
    "pooling over channels": (
        lambda x: F.avg_pool1d(x.flatten(2).transpose(1, 2), 3, 1, 1).transpose(1, 2).view_as(x),
        "avg_pool2d",
    ),
    "pooling over channels in 2d": (lambda x: F.max_pool2d(x.flatten(2), 3, 1, 1).view_as(x), "max_pool2d"),
    "pooling over channels in 3d": (lambda x: F.avg_pool3d(x, 3, 1, 1), "avg_pool3d"),
    "upsampling": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 4),
    "padding": (lambda x: F.pad(x, (1, 0, 0, 1)), 4),
    "padding with ones": (lambda x: F.pad(x, (1, 1), value=1.0), "reads something else than 0"),
    "reflection": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 4),
    "circular": (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), 4),
    "permuted there and back": (lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 4),
    "halves": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 4),
    "a gate of halves": (lambda x: torch.cat([F.glu(x, 1), F.glu(x, 1)], 1), 4),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 2), 4),
    "a shuffle by views": (lambda x: x.view(x.shape[0], 2, -1, 8, 8).transpose(1, 2).reshape(x.shape), 4),
    "a shuffle of fixed size": (lambda x: x.view(-1, 2, 4, 8, 8).transpose(1, 2).flatten(1, 2), "view"),
    "fixed parts": (lambda x: torch.cat([x[:, 4:], x[:, :4]], 1), "slice"),
    "one channel for all": (lambda x: x * x[:, 3:4], "slice"),
    "every second channel": (lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1), "slice"),
    "an index": (lambda x: x[:, torch.arange(7, -1, -1)], "index"),
    "rolled channels": (lambda x: x.roll(1, 1), "roll"),
    "rolled rows": (lambda x: x.roll(1, 2), 4),
    "flipped": (lambda x: x.flip(3), 4),
    "along rows": (lambda x: torch.cat([x, x.flip(2)], 2), 4),
    "stacked and summed": (lambda x: torch.stack([x, 2 * x], 1).sum(1), 4),
    "unfolded": (lambda x: F.unfold(x, 1).view_as(x), 4),
    "dropout that stays on": (lambda x: F.dropout2d(x, 0.3, training=True), 4),
    "noise": (lambda x: x * torch.rand_like(x), 4),
    "noise that is added": (lambda x: x + torch.rand_like(x), "reads something else than 0"),
    "where": (lambda x: torch.where(x > 0, x, torch.zeros_like(x)), 4),
    "where, else one": (lambda x: torch.where(x > 0, x, torch.ones_like(x)), "reads something else than 0"),
    "masked": (lambda x: x.masked_fill(x < 0, 0.0), 4),
    "written": (lambda x: written(x, 0.0), 4),
    "written with ones": (lambda x: written(x, 1.0), "reads something else than 0"),
    "written in a channel": (lambda x: written(x, 0.0, channel=True), "select"),
    "numpy": (lambda x: x + torch.from_numpy(x.numpy().copy()), "numpy"),
    "numpy in a function": (strangers.ByNumpy.apply, "numpy"),
    "a Python number": (lambda x: x * x.abs().max().item(), "max"),
    "of its own output": (lambda x: x.mul(x.new_tensor(2.0)), 4),
}


def written(x: Tensor, value: float, channel: bool = False) -> Tensor:
    y = x.clone()
    (y[:, 3] if channel else y[:, :, 0]).fill_(value)
    return y


@pytest.mark.parametrize("name", MIDDLES)
def test_what_lies_between_a_norm_and_a_convolution(name: str) -> None:
    middle, expected = MIDDLES[name]
    net = seeded(lambda: Net(middle))
    if isinstance(expected, int):
        torch.manual_seed(3)
        noisy = "noise" in name or "dropout" in name
        assert len(check(net, 0.5, images(), [] if noisy else [images(3, 5), images(2, 6)])["norm"]) == expected
        return
    with pytest.raises(ValueError, match=r"no channel can be removed.*plan_prune"):
        syncbn.prune(net, 0.5, images())
    (step,) = syncbn.plan_prune(net, 0.5, images())
    assert step.removed == ()
    assert sorted(step.held) == list(range(8))
    assert all(expected in reason for reason in step.held.values()), step.held
