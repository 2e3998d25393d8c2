"""Ghost batch normalization against torch's batch normalization, called in a loop over the ghost batches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import syncbn
from tests.ranks import Ranks


def in_a_loop(x: Tensor, dy: Tensor, size: int, momentum: float | None) -> dict[str, Any]:
    """Output, gradients and running statistics of `nn.BatchNorm1d` called for each ghost batch."""
    layer = nn.BatchNorm1d(x.shape[1], momentum=momentum).double()
    x = x.flatten(2).clone().requires_grad_()
    y = torch.cat([layer(x[start : start + size]) for start in range(0, len(x), size)])
    (y * dy.flatten(2)).sum().backward()
    return {"y": y.view(dy.shape), "dx": x.grad.view(dy.shape), **results(layer)}


def ghost(x: Tensor, dy: Tensor, size: int, momentum: float | None) -> dict[str, Any]:
    layer = syncbn.norm_layer("ghost", ghost_batch_size=size, momentum=momentum)(x.shape[1]).double()
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * dy).sum().backward()
    return {"y": y, "dx": x.grad, **results(layer)}


def results(layer: nn.Module) -> dict[str, Tensor]:
    grads = {f"{name}.grad": parameter.grad for name, parameter in layer.named_parameters()}
    return {**grads, **dict(layer.named_buffers())}


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    samples=st.integers(1, 13),
    size=st.integers(1, 15),
    spatial=st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda s: s != [1] * len(s)),
    momentum=st.sampled_from([0.1, 0.7, None]),
)
def test_it_is_the_loop_over_chunks(samples: int, size: int, spatial: list[int], momentum: float | None) -> None:
    x, dy = random(samples, samples, 3, *spatial) * 2 + 5, random(size, samples, 3, *spatial)
    torch.testing.assert_close(ghost(x, dy, size, momentum), in_a_loop(x, dy, size, momentum))


def test_features_without_positions() -> None:
    x, dy = random(0, 7, 4, 1), random(1, 7, 4, 1)
    got = ghost(x[..., 0], dy[..., 0], 5, 0.1)
    got["y"], got["dx"] = got["y"].unsqueeze(2), got["dx"].unsqueeze(2)
    torch.testing.assert_close(got, in_a_loop(x, dy, 5, 0.1))


def test_a_batch_that_fits_is_batch_normalization() -> None:
    x = torch.randn(6, 3, 4, 4)
    torch.testing.assert_close(syncbn.norm_layer("ghost")(3)(x), F.batch_norm(x, None, None, training=True))


def test_evaluation_is_the_running_statistics_or_the_ghost_batches_where_there_are_none() -> None:
    x = random(0, 6, 3, 2)
    layer = syncbn.norm_layer("ghost", ghost_batch_size=4)(3).double()
    layer(x)
    layer.eval()
    expected = F.batch_norm(x, layer.running_mean, layer.running_var)
    torch.testing.assert_close(layer(x), expected)
    untracked = syncbn.norm_layer("ghost", ghost_batch_size=4, track_running_stats=False)(3).double().eval()
    parts = [F.batch_norm(part, None, None, training=True) for part in (x[:4], x[4:])]
    torch.testing.assert_close(untracked(x), torch.cat(parts))


def test_a_ghost_batch_of_one_value_is_refused() -> None:
    layer = syncbn.norm_layer("ghost", ghost_batch_size=3)(5)
    with pytest.raises(ValueError, match=r"one sample a channel.*\(7, 5\) in ghost batches of 3"):
        layer(torch.randn(7, 5))
    assert layer(torch.randn(8, 5)).shape == (8, 5)


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_wrong_sizes(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="ghost_batch_size must be"):
        syncbn.norm_layer("ghost", ghost_batch_size=size)(3)


def on_rank(x: Tensor, dy: Tensor) -> dict[str, Any]:
    rows = slice(0, 5) if dist.get_rank() == 0 else slice(5, None)
    return {name: value.detach() for name, value in ghost(x[rows], dy[rows], 2, 0.1).items()}


@pytest.mark.distributed
def test_ranks_normalize_their_own_samples(ranks: Callable[[int], Ranks]) -> None:
    x, dy = random(0, 8, 3, 2), random(1, 8, 3, 2)
    for rows, got in zip((slice(0, 5), slice(5, None)), ranks(2).run(on_rank, x, dy), strict=True):
        torch.testing.assert_close(got, in_a_loop(x[rows], dy[rows], 2, 0.1))
