"""IterNorm against its formula in float64, its covariance, and any split over ranks."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import syncbn
from syncbn.norm.decorrelated import DecorrelatedBatchNorm, inverse_sqrt
from tests.norm.shares import Share, Trained, join, train
from tests.ranks import Ranks


def random_share(seed: int, shape: tuple[int, ...], sizes: list[int], group_size: int = 2, **kwargs: object) -> Share:
    generator = torch.Generator().manual_seed(seed)
    x, dy = torch.randn(2, sum(sizes), *shape, generator=generator, dtype=torch.float64)
    mix = torch.randn(shape[0], shape[0], generator=generator, dtype=torch.float64)
    x = torch.einsum("cd,nd...->nc...", mix, x) + 3
    weight, bias = torch.randn(2, shape[0], generator=generator, dtype=torch.float64)
    options = {"group_size": group_size, **kwargs.pop("options", {})}
    return Share("decorrelated", x, dy, sizes, {"weight": weight, "bias": bias}, options, **kwargs)


def newton(cov: Tensor, iterations: int) -> Tensor:
    """The paper's recursion."""
    trace = torch.trace(cov)
    p = torch.eye(len(cov), dtype=cov.dtype)
    for _ in range(iterations):
        p = 0.5 * (3 * p - torch.linalg.matrix_power(p, 3) @ (cov / trace))
    return p / trace.sqrt()


def expected_step(share: Share, iterations: int = 5, eps: float = 1e-5, momentum: float = 0.1) -> Trained:
    """One group at a time, over the samples that count."""
    x = share.x.clone().requires_grad_()
    weight, bias = (share.parameters[name].clone().requires_grad_() for name in ("weight", "bias"))
    counts = torch.ones_like(x[:, 0], dtype=torch.bool) if share.mask is None else share.mask
    size = min(share.options["group_size"], x.shape[1])
    chosen = x.movedim(1, -1)[counts]
    mean = chosen.mean(0)
    y, whiteners = torch.zeros_like(x.movedim(1, -1)), []
    parts = []
    for start in range(0, x.shape[1], size):
        centred = (chosen - mean)[:, start : start + size]
        cov = centred.T @ centred / len(centred) + eps * torch.eye(size, dtype=x.dtype)
        whiteners.append(newton(cov, iterations))
        parts.append(centred @ whiteners[-1].T)
    y = y.masked_scatter(counts.unsqueeze(-1), torch.cat(parts, 1) * weight + bias).movedim(-1, 1)
    dx, dweight, dbias = torch.autograd.grad((y * share.dy).sum(), (x, weight, bias))
    identity = torch.eye(size, dtype=x.dtype)
    buffers = {
        "running_mean": momentum * mean.detach(),
        "running_var": 1 - momentum + momentum * chosen.detach().var(0, correction=1),
        "num_batches_tracked": torch.tensor(1),
        "running_whitener": (1 - momentum) * identity + momentum * torch.stack(whiteners).detach(),
    }
    return Trained(y.detach(), dx, {"weight": dweight, "bias": dbias}, buffers)


def assert_equal(got: Trained, expected: Trained) -> None:
    for what in ("y", "dx", "grads", "buffers"):
        torch.testing.assert_close(getattr(got, what), getattr(expected, what), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("group_size", [1, 2, 6, 64])
@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 3, 2), (6, 2, 3, 2)])
def test_equals_the_formula(shape: tuple[int, ...], group_size: int, masked: bool) -> None:
    share = random_share(0, shape, [12], group_size)
    if masked:
        share.mask = torch.rand(12, *shape[1:], generator=torch.Generator().manual_seed(1)) < 0.7
    assert_equal(train(share), expected_step(share))


def covariance(y: Tensor) -> Tensor:
    return torch.cov(y.movedim(1, 0).flatten(1).double(), correction=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_output_is_white(dtype: torch.dtype) -> None:
    share = random_share(2, (8, 16, 16), [16], 8)
    x = share.x.to(dtype)
    layer = DecorrelatedBatchNorm(8, iterations=25).to(dtype)
    torch.testing.assert_close(covariance(layer(x)), torch.eye(8).double(), rtol=0, atol=1e-3)
    assert layer(x).mean((0, 2, 3)).abs().max() < 1e-4
    few = covariance(DecorrelatedBatchNorm(8, iterations=2).to(dtype)(x))
    assert (few - torch.eye(8)).abs().max() > 0.1, "two steps aren't enough"


def test_groups_are_white_each_by_itself() -> None:
    share = random_share(3, (6, 8, 8), [16])
    cov = covariance(DecorrelatedBatchNorm(6, group_size=2, iterations=25).double()(share.x))
    for start in range(0, 6, 2):
        block = cov[start : start + 2, start : start + 2]
        torch.testing.assert_close(block, torch.eye(2).double(), rtol=0, atol=1e-3)
    assert (cov - torch.eye(6)).abs().max() > 0.1, "channels of different groups stay correlated"


def test_groups_of_one_channel_are_batch_normalization() -> None:
    share = random_share(4, (3, 5, 5), [8])
    expected = torch.nn.functional.batch_norm(share.x, None, None, training=True)
    torch.testing.assert_close(DecorrelatedBatchNorm(3, group_size=1, iterations=15).double()(share.x), expected)


def test_many_newton_steps_on_an_ill_conditioned_matrix_converge() -> None:
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=generator))
    values = torch.logspace(-6, 0, 16, dtype=torch.float64)
    expected = turn @ torch.diag(values**-0.5) @ turn.T
    got = inverse_sqrt(turn @ torch.diag(values) @ turn.T, iterations=60)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@st.composite
def splits(draw: st.DrawFn) -> Share:
    sizes = draw(st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(lambda s: sum(s) >= 2))
    shape = (draw(st.sampled_from([2, 4])), *draw(st.lists(st.integers(1, 3), max_size=2)))
    share = random_share(draw(st.integers(0, 2**31)), shape, sizes, draw(st.sampled_from([1, 2, 4])))
    if draw(st.booleans()):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        share.mask = torch.rand(sum(sizes), *shape[1:], generator=generator) < 0.6
        share.mask.view(-1)[:2] = True  # an unbiased variance needs two
    return share


@pytest.mark.distributed
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(share=splits())
def test_any_split_equals_one_process(share: Share, ranks: Callable[[int], Ranks]) -> None:
    got, expected = join(ranks(3).run(train, share)), expected_step(share)
    # A group of more channels than samples is singular but for eps, so its gradient is large.
    size = max(1.0, expected.dx.abs().max().item())
    for what in ("y", "dx", "grads", "buffers"):
        torch.testing.assert_close(getattr(got, what), getattr(expected, what), rtol=1e-7, atol=1e-7 * size)


@pytest.mark.distributed
def test_traced_equals_one_process(ranks: Callable[[int], Ranks]) -> None:
    share = random_share(6, (4, 3, 2), [2, 0, 5], traced=True)
    assert_equal(join(ranks(3).run(train, share)), expected_step(share))


def test_evaluation_whitens_by_the_running_statistics() -> None:
    share = random_share(7, (4, 8, 8), [32], 4)
    layer = DecorrelatedBatchNorm(4, iterations=20, momentum=1.0).double()
    trained = layer(share.x)
    torch.testing.assert_close(layer.eval()(share.x), trained)
    one_by_one = torch.cat([layer(sample) for sample in share.x.split(1)])
    torch.testing.assert_close(one_by_one, trained)
    layer.reset_running_stats()
    torch.testing.assert_close(layer(share.x), share.x)


def test_a_converted_layer_evaluates_as_before() -> None:
    layer = torch.nn.BatchNorm2d(4).double()
    x = random_share(12, (4, 5, 5), [8]).x
    layer(x)
    expected = layer.eval()(x)
    converted = syncbn.convert(layer, "decorrelated", group_size=2)
    torch.testing.assert_close(converted(x), expected)
    assert syncbn.revert(converted) is layer
    torch.testing.assert_close(layer(x), expected)


def test_what_is_masked_reaches_nothing() -> None:
    share = random_share(8, (4, 4), [9])
    share.mask = torch.rand(9, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    plain = train(share)
    share.x = share.x.masked_fill(~share.mask.unsqueeze(1), float("nan"))
    assert_equal(train(share), plain)


def test_statistics_stay_where_they_are_when_a_value_is_not_finite() -> None:
    layer = DecorrelatedBatchNorm(4)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    x = torch.randn(6, 4)
    x[2, 1] = float("inf")
    layer(x)
    torch.testing.assert_close(dict(layer.named_buffers()), before, rtol=0, atol=0)


def test_gradcheck() -> None:
    share = random_share(9, (4, 3), [5], options={"track_running_stats": False})
    layer, x = share.layer(), share.x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(layer, (x,), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_whitened_in_float32(dtype: torch.dtype) -> None:
    x = random_share(10, (4, 16, 16), [16]).x.to(dtype)
    expected = DecorrelatedBatchNorm(4, iterations=20)(x.float())
    layer = DecorrelatedBatchNorm(4, iterations=20).to(dtype)
    assert layer.running_whitener.dtype == torch.float32
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = DecorrelatedBatchNorm(4, iterations=20)(x.float())
    torch.testing.assert_close(y, expected)


def test_a_large_offset_in_float32() -> None:
    x = random_share(11, (4, 16, 16), [16]).x.float() + 1e4
    expected = DecorrelatedBatchNorm(4, iterations=20).double()(x.double())
    torch.testing.assert_close(DecorrelatedBatchNorm(4, iterations=20)(x).double(), expected, rtol=0, atol=1e-3)


def test_layouts_are_kept() -> None:
    layer, x = DecorrelatedBatchNorm(4), torch.randn(6, 4, 3, 2)
    assert layer(x).is_contiguous()
    assert layer(x.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 4}, r"group_size must divide the 6 channels, got 4; allowed: \[1, 2, 3, 6\]"),
        ({"group_size": 0}, "group_size must divide the 6 channels, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0; 5 is the usual value"),
    ],
)
def test_mistakes(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        syncbn.norm_layer("decorrelated", **options)(6)
    with pytest.raises(ValueError, match="one sample a channel has no variance"):
        syncbn.norm_layer("decorrelated")(6)(torch.randn(1, 6))
