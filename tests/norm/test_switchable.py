"""Switchable normalization against its formula in float64, its three extremes against torch, and over ranks."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import syncbn
from syncbn.norm.switchable import SwitchableNorm, shares
from tests.norm.shares import Share, Trained, join, train
from tests.ranks import Ranks

NAMES = ("weight", "bias", "mean_logits", "var_logits")


def random_share(seed: int, shape: tuple[int, ...], sizes: list[int], **kwargs: object) -> Share:
    generator = torch.Generator().manual_seed(seed)
    x, dy = torch.randn(2, sum(sizes), *shape, generator=generator, dtype=torch.float64)
    x = x * 2 + torch.randn(1, shape[0], *[1] * (len(shape) - 1), generator=generator)
    sizes_of = {"weight": shape[0], "bias": shape[0], "mean_logits": 3, "var_logits": 3}
    parameters = {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in sizes_of.items()}
    return Share("switchable", x, dy, sizes, parameters, **kwargs)


def by_formula(x: Tensor, p: dict[str, Tensor], mask: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """y, sample by sample and channel by channel, by selecting what counts."""
    mask = torch.ones_like(x[:, 0], dtype=torch.bool) if mask is None else mask
    shares_of = [
        torch.exp(p[name]) / torch.exp(p[name]).sum()
        if x[0, 0].numel() > 1
        else torch.cat([torch.zeros(1), torch.exp(p[name][1:]) / torch.exp(p[name][1:]).sum()])
        for name in ("mean_logits", "var_logits")
    ]
    y = torch.zeros_like(x)
    for n in range(len(x)):
        if not mask[n].any():
            continue
        for c in range(x.shape[1]):
            sets = [x[n, c][mask[n]], x[n][:, mask[n]], x.movedim(1, 0)[c][mask]]
            mean = sum(part * values.mean() for part, values in zip(shares_of[0], sets, strict=True))
            var = sum(
                part * ((values - values.mean()) ** 2).mean() for part, values in zip(shares_of[1], sets, strict=True)
            )
            row = (x[n, c] - mean) / (var + eps) ** 0.5 * p["weight"][c] + p["bias"][c]
            y[n, c] = torch.where(mask[n], row, 0)
    return y


def expected_step(share: Share, momentum: float = 0.1) -> Trained:
    x = share.x.clone().requires_grad_()
    parameters = {name: value.clone().requires_grad_() for name, value in share.parameters.items()}
    y = by_formula(x, parameters, share.mask)
    dx, *grads = torch.autograd.grad((y * share.dy).sum(), (x, *parameters.values()))
    columns = share.x.movedim(1, 0).flatten(1) if share.mask is None else share.x.movedim(1, 0)[:, share.mask]
    buffers = {
        "running_mean": momentum * columns.mean(1),
        "running_var": 1 - momentum + momentum * columns.var(1, correction=1),
        "num_batches_tracked": torch.tensor(1),
    }
    return Trained(y.detach(), dx, dict(zip(NAMES, grads, strict=True)), buffers)


def assert_equal(got: Trained, expected: Trained) -> None:
    for what in ("y", "dx", "grads", "buffers"):
        torch.testing.assert_close(getattr(got, what), getattr(expected, what), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 3, 2), (4, 2, 3, 2), (4, 1, 1)])
def test_equals_the_formula(shape: tuple[int, ...], masked: bool) -> None:
    share = random_share(0, shape, [6])
    if masked:
        share.mask = torch.rand(6, *shape[1:], generator=torch.Generator().manual_seed(1)) < 0.6
        assert not share.mask.all()
    assert_equal(train(share), expected_step(share))


@pytest.mark.parametrize(
    ("chosen", "theirs"),
    [
        (0, lambda x: F.instance_norm(x)),
        (1, lambda x: F.group_norm(x, 1)),
        (2, lambda x: F.batch_norm(x, None, None, training=True)),
    ],
)
def test_the_extremes_are_torchs_layers(chosen: int, theirs: Callable[[Tensor], Tensor]) -> None:
    layer, x = SwitchableNorm(4).double(), torch.randn(6, 4, 3, 2, dtype=torch.float64) * 3 + 1
    for logits in (layer.mean_logits, layer.var_logits):
        logits.data.fill_(-1e9)[chosen] = 0
    torch.testing.assert_close(layer(x), theirs(x))


def test_weights_sum_to_one_and_are_learned() -> None:
    layer = SwitchableNorm(4)
    torch.testing.assert_close(shares(layer.mean_logits), torch.full((3,), 1 / 3))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    x, target = torch.randn(2, 8, 4, 5)
    for _ in range(5):
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    for logits in (layer.mean_logits, layer.var_logits):
        for single_position in (False, True):
            weights = shares(logits, single_position)
            assert weights.sum().item() == pytest.approx(1)
            assert (weights >= 0).all()
            assert (weights[0] == 0) == single_position
        assert shares(logits).max() - shares(logits).min() > 1e-3


@st.composite
def splits(draw: st.DrawFn) -> Share:
    sizes = draw(st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(lambda s: sum(s) >= 2))
    shape = (draw(st.integers(1, 4)), *draw(st.lists(st.integers(1, 3), max_size=2)))
    share = random_share(draw(st.integers(0, 2**31)), shape, sizes)
    if draw(st.booleans()):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        share.mask = torch.rand(sum(sizes), *shape[1:], generator=generator) < 0.6
        share.mask.view(-1)[:2] = True  # an unbiased variance needs two
    return share


@pytest.mark.distributed
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(share=splits())
def test_any_split_equals_one_process(share: Share, ranks: Callable[[int], Ranks]) -> None:
    got = join(ranks(len(share.sizes)).run(train, share))
    assert_equal(got, expected_step(share))


def test_evaluation_takes_the_running_batch_moments_and_the_samples_own() -> None:
    share = random_share(3, (4, 5), [6])
    layer = share.layer()
    layer(share.x)
    layer.eval()
    one_by_one = torch.cat([layer(sample) for sample in share.x.split(1)])
    torch.testing.assert_close(layer(share.x), one_by_one)
    for logits in (layer.mean_logits, layer.var_logits):
        logits.data.copy_(torch.tensor([-1e9, -1e9, 0]))
    mean, var = layer.running_mean, layer.running_var
    expected = F.batch_norm(share.x, mean, var, layer.weight, layer.bias)
    torch.testing.assert_close(layer(share.x), expected)


def test_what_is_masked_reaches_nothing() -> None:
    share = random_share(4, (3, 4), [5])
    share.mask = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    plain = train(share)
    share.x = share.x.masked_fill(~share.mask.unsqueeze(1), float("nan"))
    assert_equal(train(share), plain)


def test_gradcheck() -> None:
    share = random_share(5, (3, 4), [4], options={"track_running_stats": False})
    layer = share.layer()
    x = share.x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_a_large_offset_in_float32() -> None:
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 1e4
    logits = {"mean_logits": torch.zeros(3), "var_logits": torch.zeros(3)}
    expected = by_formula(x.double(), {"weight": torch.ones(4), "bias": torch.zeros(4), **logits})
    # 5e-4 is what rounding a mean of 1e4 to float32 costs.
    torch.testing.assert_close(SwitchableNorm(4)(x).double(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs(dtype: torch.dtype) -> None:
    layer = SwitchableNorm(4)
    x = (torch.randn(6, 4, 8, 8) * 300).to(dtype)
    expected = layer(x.float())
    assert layer(x).dtype == dtype
    torch.testing.assert_close(layer.to(dtype)(x).float(), expected, rtol=1e-2, atol=1e-2)
    assert layer.running_var.dtype == torch.float32


def test_layouts_are_kept() -> None:
    layer, x = SwitchableNorm(4), torch.randn(6, 4, 3, 2)
    assert layer(x).is_contiguous()
    assert layer(x.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.distributed
def test_traced_equals_one_process(ranks: Callable[[int], Ranks]) -> None:
    share = random_share(6, (4, 3, 2), [2, 0, 5], traced=True)
    assert_equal(join(ranks(3).run(train, share)), expected_step(share))


def test_one_sample_in_one_process() -> None:
    with pytest.raises(ValueError, match="one sample a channel has no variance"):
        syncbn.norm_layer("switchable")(4)(torch.randn(1, 4))
