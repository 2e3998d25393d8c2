"""The C++ arithmetic on numbers of every channel equals torch's operations."""

import math

import pytest
import torch
from torch import Tensor, nn

import syncbn
from syncbn.norm.core import channels, tracking
from syncbn.norm.core.moments import Moments, biased_var, unbiased_var

COUNTS = [0, 1, 2, 1000]


def some_moments(count: int) -> Moments:
    torch.manual_seed(count)
    mean, m2 = 1e3 * torch.randn(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    return Moments(torch.tensor(float(count), dtype=torch.float64), mean, m2 * max(count, 1))


@pytest.mark.parametrize("count", COUNTS)
def test_packing_loses_nothing(count: int) -> None:
    moments = some_moments(count)
    assert channels.serve(*moments)
    sums = channels.pack(*moments)
    total = moments.count * moments.mean
    expected = torch.cat([total, moments.m2 + total * moments.mean, moments.count.view(1)])
    torch.testing.assert_close(sums, expected, rtol=1e-15, atol=0)
    back = channels.unpack(sums)
    assert back[0].shape == ()
    assert back[0] == count
    if count:
        torch.testing.assert_close(back[1], moments.mean, rtol=1e-15, atol=0)
        torch.testing.assert_close(back[2], moments.m2, rtol=0, atol=1e-7)


@pytest.mark.parametrize("count", COUNTS)
def test_statistics_and_means(count: int) -> None:
    moments = some_moments(count)
    mean, var = channels.statistics(*moments)
    assert torch.equal(mean, moments.mean.float())
    assert torch.equal(var, biased_var(moments).float())
    divided = channels.means(moments.mean, moments.count)
    assert torch.equal(divided, (moments.mean / max(count, 1)).float())


@pytest.mark.parametrize("momentum", [None, 0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("bad", [None, math.nan, math.inf, 1e300])
def test_tracking_is_that_of_the_operator(count: int, momentum: float | None, bad: float | None) -> None:
    """1e300 is finite in float64 alone: running statistics are float32."""
    moments = some_moments(count)
    if bad is not None:
        moments.m2[3] = bad
    buffers = [torch.randn(5), torch.rand(5), torch.tensor(3)]
    expected = [buffer.clone() for buffer in buffers]
    versions = [buffer._version for buffer in buffers]
    assert channels.track(*buffers, moments, momentum)
    tracked = moments.count, moments.mean, unbiased_var(moments)
    tracking._track(*expected, *tracked, momentum, False, None, [], [])
    for got, right in zip(buffers, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-6, atol=1e-6)
    assert buffers[2] == expected[2] == (3 if bad is not None or count == 0 else 4)
    assert [buffer._version for buffer in buffers] == [version + 1 for version in versions]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_buffers_are_left_to_torch(dtype: torch.dtype) -> None:
    mean = torch.zeros(5, dtype=dtype)
    assert not channels.track(mean, torch.zeros(5), torch.tensor(0), some_moments(3), 0.1)
    assert not mean.any()


@pytest.mark.parametrize(
    "odd",
    [
        torch.ones(6, dtype=torch.float64)[::2],
        torch.ones(3),
        torch.ones(3, dtype=torch.float64, requires_grad=True),
        torch._neg_view(torch.ones(3, dtype=torch.float64)),
        torch.ones(3, dtype=torch.float64, device="meta"),
    ],
)
def test_what_it_cannot_read(odd: Tensor) -> None:
    assert not channels.serve(odd)
    if odd.requires_grad:
        with torch.no_grad():
            assert channels.serve(odd)


def test_a_step_is_that_of_batch_norm() -> None:
    ours, theirs = syncbn.SyncBatchNorm(4), nn.BatchNorm2d(4)
    for _ in range(3):
        x = torch.randn(6, 4, 3, 3)
        for layer in (ours, theirs):
            layer(x).square().sum().backward()
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-4)
