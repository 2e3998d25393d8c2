"""Gradients that are computed while a message is under way are those of torch, bit by bit, whatever else goes on."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from syncbn.norm.core import compat
from tests.norm.fusion import overlap_steps as steps
from tests.norm.fusion.overlap_scenarios import SCENARIOS
from tests.norm.fusion.overlap_scenarios.registry import compare_on_rank
from tests.norm.fusion.overlap_steps import Make, images, make, several_steps, step, watched
from tests.ranks import Ranks

pytestmark = pytest.mark.distributed


def order_on_rank() -> list[list[str]]:
    seen = []
    for overlap in (True, False):
        model = make(
            overlap,
            lambda norm: nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Conv2d(4, 4, 3), norm(4), nn.Conv2d(4, 2, 3)),
        )
        step(model, 0)
        loss = model(images(1)).sum()
        with watched() as events:
            loss.backward()
        seen.append(events.seen)
    return seen


def test_the_message_is_under_way_while_the_weight_gradient_is_computed(ranks: Callable[[int], Ranks]) -> None:
    with_overlap, without = ranks(2).run(order_on_rank)[0]
    assert with_overlap == [*2 * ["dx", "send", "dW", "wait"], "dW"]
    assert without == [*2 * ["dx", "dW", "sum"], "dW"]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "grouped": lambda: nn.Conv2d(4, 8, 3, groups=2, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1),
    "dilated": lambda: nn.Conv2d(4, 6, 3, dilation=2, stride=(1, 2)),
    "same": lambda: nn.Conv2d(4, 6, (3, 5), padding="same"),
    "same on two sides": lambda: nn.Conv2d(4, 6, 4, padding="same"),
    "valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
    "linear 4d": lambda: nn.Linear(8, 5),
    "linear without bias": lambda: nn.Linear(8, 5, bias=False),
}


def layer_steps(make: Make, layer: Callable[[], nn.Module]) -> list[Tensor]:
    model = make(lambda norm: nn.Sequential(nn.Conv2d(3, 4, 1), norm(4), nn.ReLU(), layer()))
    return several_steps(model, 2)


def layer_on_rank(name: str, options: dict[str, Any]) -> None:
    warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
    steps.compare(layer_steps, LAYERS[name], hidden=None, **options)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("options", [{}, {"fuse_activation": True, "memory": "recompute"}], ids=["plain", "recompute"])
def test_layers(ranks: Callable[[int], Ranks], name: str, options: dict[str, Any]) -> None:
    ranks(2).run(layer_on_rank, name, options)


DDP = {
    "buckets": {"bucket_cap_mb": 0.001},
    "views": {"gradient_as_bucket_view": True},
    "static": {"static_graph": True, "bucket_cap_mb": 0.001},
    "unused": {"find_unused_parameters": True, "gradient_as_bucket_view": True},
}


def ddp_steps(make: Make, options: dict[str, Any], accumulate: bool) -> list[Tensor]:
    model = DistributedDataParallel(make(), **compat.ddp_without_buffers(), **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for number in range(4):
        if accumulate:
            with model.no_sync():
                model(images(number + 10)).square().sum().backward()
        model(images(number)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in model.parameters()]


def ddp_on_rank(name: str, accumulate: bool) -> None:
    steps.compare(ddp_steps, DDP[name], accumulate)


@pytest.mark.parametrize(("name", "accumulate"), [*((name, False) for name in DDP), ("views", True), ("unused", True)])
def test_ddp(ranks: Callable[[int], Ranks], name: str, accumulate: bool) -> None:
    ranks(2).run(ddp_on_rank, name, accumulate)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_bits(ranks: Callable[[int], Ranks], name: str) -> None:
    ranks(2).run(compare_on_rank, name)
