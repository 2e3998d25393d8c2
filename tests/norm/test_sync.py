"""SyncBatchNorm against the float64 oracle: any split, shape, dtype and layout."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import syncbn
from tests.norm import oracle, steps
from tests.norm.steps import Batch
from tests.ranks import Ranks

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def random_batch(seed: int, shape: list[int], sizes: list[int], **kwargs: object) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    channels = shape[0]
    x = torch.randn(sum(sizes), *shape, generator=generator, dtype=torch.float64)
    scale, shift = (torch.randn(1, channels, *[1] * (len(shape) - 1), generator=generator) for _ in range(2))
    dy = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(2, channels, generator=generator, dtype=torch.float64)
    return Batch(x * (scale.abs() + 0.5) + shift, dy, weight, bias, sizes, **kwargs)


def assert_equals_one_process(batch: Batch, results: list[oracle.Step]) -> None:
    # The layer gets the rounded input, and so does the oracle.
    x, dy = batch.x.to(batch.dtype), batch.dy.to(batch.dtype)
    wide = torch.float64 if batch.dtype == torch.float64 else torch.float32
    expected = oracle.training_step(x, dy, batch.weight.to(wide), batch.bias.to(wide), batch.mask)
    got = steps.gather(results)
    tolerance = TOLERANCE[batch.dtype]
    for name in oracle.Step._fields:
        actual, target = getattr(got, name).double(), getattr(expected, name)
        loose = tolerance if name in ("y", "dx") else min(tolerance, 1e-4)
        # Sums of many terms are compared to their size.
        size = max(1.0, target.abs().max().item()) if target.numel() else 1.0
        torch.testing.assert_close(actual, target, rtol=0, atol=loose * size, msg=lambda m, n=name: f"{n}: {m}")


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    world_size = draw(st.integers(2, 4))
    sizes = draw(st.lists(st.integers(0, 4), min_size=world_size, max_size=world_size).filter(lambda s: sum(s) >= 2))
    spatial = draw(st.lists(st.integers(1, 5), max_size=3))
    batch = random_batch(draw(st.integers(0, 2**31)), [draw(st.integers(1, 5)), *spatial], sizes)
    batch.dtype = draw(st.sampled_from(list(TOLERANCE)))
    batch.channels_last = draw(st.booleans())
    if draw(st.booleans()):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        batch.mask = torch.rand(batch.x.shape[0], *spatial, generator=generator) < draw(st.sampled_from([0.3, 0.7]))
        batch.mask.view(-1)[:2] = True  # an unbiased variance needs two
        batch.x = batch.x.masked_fill(~batch.mask.unsqueeze(1), float("nan"))
    return batch


@pytest.mark.distributed
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(batch=batches())
def test_any_split_equals_one_process(batch: Batch, ranks: Callable[[int], Ranks]) -> None:
    assert_equals_one_process(batch, ranks(len(batch.sizes)).run(steps.train, batch))


@pytest.mark.parametrize("shape", [[6], [6, 9], [6, 5, 4], [6, 3, 4, 2]])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_one_process_equals_the_oracle(shape: list[int], channels_last: bool, dtype: torch.dtype) -> None:
    batch = random_batch(0, shape, [7], dtype=dtype, channels_last=channels_last)
    assert_equals_one_process(batch, [steps.train(batch)])


@pytest.mark.parametrize("shape", [(6,), (6, 9), (6, 5, 4), (6, 3, 4, 2)])
def test_one_process_equals_torch(shape: tuple[int, ...]) -> None:
    x = torch.randn(8, *shape, dtype=torch.float64)
    theirs = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}[len(shape)](6).double()
    ours = syncbn.SyncBatchNorm(6).double()
    for _ in range(3):
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("order", [(0, 1, 3, 2), (3, 1, 2, 0), (1, 0, 2, 3)])
def test_layouts_that_are_neither_contiguous_nor_channels_last(order: tuple[int, ...]) -> None:
    batch = random_batch(9, [6, 5, 4], [7])
    expected = oracle.training_step(batch.x, batch.dy, batch.weight, batch.bias)
    layer = steps.layer_for(batch)
    for tensor in (batch.x.permute(order).contiguous().permute(*torch.tensor(order).argsort().tolist()), batch.x):
        padded = torch.zeros(7, 6, 5, 8, dtype=torch.float64)[..., ::2].copy_(tensor)
        for x in (tensor, padded):
            x = x.detach().requires_grad_()
            y = layer(x)
            assert not y._is_view()
            y.backward(batch.dy)
            torch.testing.assert_close((y, x.grad), (expected.y, expected.dx))


def test_activations_in_place_may_follow() -> None:
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    y = nn.ReLU(inplace=True)(syncbn.SyncBatchNorm(3)(x))
    y.sum().backward()
    reference = nn.BatchNorm2d(3)(x).relu()
    torch.testing.assert_close((y, x.grad), (reference, torch.autograd.grad(reference.sum(), x)[0]))


@pytest.mark.distributed
def test_a_single_value_per_rank(ranks: Callable[[int], Ranks]) -> None:
    batch = random_batch(1, [5], [1, 1, 1])
    assert_equals_one_process(batch, ranks(3).run(steps.train, batch))


@pytest.mark.distributed
def test_many_rows_in_float32_channels_last(ranks: Callable[[int], Ranks]) -> None:
    batch = random_batch(2, [4, 96, 96], [3, 5], dtype=torch.float32, channels_last=True)
    assert_equals_one_process(batch, ranks(2).run(steps.train, batch))


@pytest.mark.distributed
@pytest.mark.parametrize("channels_last", [False, True])
def test_more_samples_than_half_precision_counts(ranks: Callable[[int], Ranks], channels_last: bool) -> None:
    batch = random_batch(3, [2, 192, 192], [1, 2], dtype=torch.float16, channels_last=channels_last)
    assert batch.x[:, 0].numel() > 65_504
    assert_equals_one_process(batch, ranks(2).run(steps.train, batch))


@pytest.mark.distributed
@pytest.mark.parametrize("channels_last", [False, True])
def test_mean_of_a_thousand_std_at_the_first_step(ranks: Callable[[int], Ranks], channels_last: bool) -> None:
    batch = random_batch(4, [3, 16, 16], [3, 5], dtype=torch.float32, channels_last=channels_last)
    batch.x = torch.randn(batch.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) + 1000
    got = steps.gather(ranks(2).run(steps.train, batch))
    expected = oracle.training_step(batch.x.float(), batch.dy.float(), batch.weight.float(), batch.bias.float())
    # 6e-5 is what rounding a mean of 1000 to float32 costs.
    torch.testing.assert_close(got.y.double(), expected.y, rtol=0, atol=2e-4)
    torch.testing.assert_close(got.running_var.double(), expected.running_var, rtol=1e-5, atol=0)
    torch.testing.assert_close(got.dx.double(), expected.dx, rtol=0, atol=2e-4)


@pytest.mark.distributed
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_offset_inputs_with_masks_and_compiled(ranks: Callable[[int], Ranks], compiled: bool, masked: bool) -> None:
    batch = random_batch(5, [3, 8], [3, 5], dtype=torch.float32, compiled=compiled)
    batch.x = batch.x + 1000
    if masked:
        batch.mask = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    got = steps.gather(ranks(2).run(steps.train, batch))
    expected = oracle.training_step(
        batch.x.float(), batch.dy.float(), batch.weight.float(), batch.bias.float(), batch.mask
    )
    torch.testing.assert_close(got.y.double(), expected.y, rtol=0, atol=3e-4)
    torch.testing.assert_close(got.running_var.double(), expected.running_var, rtol=1e-4, atol=0)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("dtype", "channels_last", "masked"),
    [(torch.float32, False, True), (torch.float32, True, False), (torch.bfloat16, True, True)],
)
def test_compiled_equals_one_process(
    ranks: Callable[[int], Ranks], dtype: torch.dtype, channels_last: bool, masked: bool
) -> None:
    batch = random_batch(10, [4, 3, 5], [2, 0, 5], dtype=dtype, channels_last=channels_last, compiled=True)
    if masked:
        batch.mask = torch.rand(7, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.5
        batch.x = batch.x.masked_fill(~batch.mask.unsqueeze(1), float("nan"))
    assert_equals_one_process(batch, ranks(3).run(steps.train, batch))


@pytest.mark.distributed
@pytest.mark.parametrize(
    "options",
    [{"affine": False}, {"bias": False}, {"track_running_stats": False}, {"eps": 0.3}, {"momentum": None}],
    ids=str,
)
def test_options(ranks: Callable[[int], Ranks], options: dict[str, object]) -> None:
    batch = random_batch(6, [4, 3, 2], [1, 4], options=options)
    got = steps.gather(ranks(2).run(steps.train, batch))
    weight = torch.ones(4) if options == {"affine": False} else batch.weight
    bias = torch.zeros(4) if options in ({"affine": False}, {"bias": False}) else batch.bias
    momentum = 1.0 if options == {"momentum": None} else 0.1
    expected = oracle.training_step(
        batch.x, batch.dy, weight, bias, eps=float(options.get("eps", 1e-5)), momentum=momentum
    )
    for name, actual in got._asdict().items():
        absent = (
            (name in ("dweight", "dbias") and options == {"affine": False})
            or (name == "dbias" and options == {"bias": False})
            or (name.startswith("running") and options == {"track_running_stats": False})
        )
        if absent:
            assert actual is None
        else:
            torch.testing.assert_close(actual, getattr(expected, name), rtol=1e-10, atol=1e-10)


def test_momentum_none_is_the_average_of_all_batches() -> None:
    layer, reference = syncbn.SyncBatchNorm(3, momentum=None).double(), nn.BatchNorm1d(3, momentum=None).double()
    for seed in range(4):
        x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        layer(x), reference(x)
    torch.testing.assert_close(layer.state_dict(), reference.state_dict())


@pytest.mark.distributed
def test_all_ranks_empty_changes_nothing(ranks: Callable[[int], Ranks]) -> None:
    batch = random_batch(7, [4, 3, 3], [0, 0])
    for step in ranks(2).run(steps.train, batch):
        assert step.y.shape == step.dx.shape == (0, 4, 3, 3)
        assert torch.equal(step.running_mean, torch.zeros(4, dtype=torch.float64))
        assert torch.equal(step.running_var, torch.ones(4, dtype=torch.float64))
        assert torch.equal(step.dweight, torch.zeros(4, dtype=torch.float64))


@pytest.mark.distributed
@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_running_statistics_survive_a_value_that_is_not_finite_on_one_rank(
    ranks: Callable[[int], Ranks], poison: float
) -> None:
    batch = random_batch(8, [4, 3], [2, 3])
    batch.x[4, 1, 0] = poison  # on rank 1
    for step in ranks(2).run(steps.train, batch):
        assert torch.equal(step.running_mean, torch.zeros(4, dtype=torch.float64))
        assert torch.equal(step.running_var, torch.ones(4, dtype=torch.float64))
        assert step.y[:, 1].isnan().any(), "every rank sees that the step is lost"
        assert step.y[:, 0].isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
def test_eval_equals_torch(masked: bool) -> None:
    x = torch.randn(6, 4, 5)
    layer, reference = syncbn.SyncBatchNorm(4), nn.BatchNorm1d(4)
    reference(x)
    layer.load_state_dict(reference.state_dict())
    mask = torch.rand(6, 5) < 0.5 if masked else torch.ones(6, 5, dtype=torch.bool)
    expected = torch.where(mask.unsqueeze(1), reference.eval()(x), 0)
    torch.testing.assert_close(layer.eval()(x, mask if masked else None), expected)


def test_gradcheck() -> None:
    layer = syncbn.SyncBatchNorm(3, track_running_stats=False).double()
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True], [True, False], [False, False], [True, True]])
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradcheck(lambda x: layer(x, mask), (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(lambda x: layer(x, mask), (x,))
