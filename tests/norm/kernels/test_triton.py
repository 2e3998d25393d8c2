"""The Triton kernels, interpreted on CPU, against float64."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from syncbn.norm import kernels
from syncbn.norm.core.kernels import candidates, kernels_for
from syncbn.norm.kernels.interface import ChannelAffine
from tests.norm import oracle, steps
from tests.norm.steps import Batch
from tests.norm.test_sync import TOLERANCE, assert_equals_one_process, random_batch
from tests.ranks import Ranks

triton = pytest.importorskip("triton")  # available only for Linux

EPS, SLOPE = 1e-5, 0.1


@pytest.fixture(scope="module")
def interpreters() -> Iterator[Ranks]:
    """Two gloo ranks in which Triton interprets kernels; it reads its variable when it is imported."""
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip(f"the interpreter of Triton {triton.__version__} can't run beside numpy {np.__version__}")
    ranks = Ranks(2)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SYNCBN_KERNELS", "triton")
        environment.setenv("TRITON_INTERPRET", "1")
        ranks.run(chosen_kernels)
    yield ranks
    ranks.close()


def chosen_kernels() -> str:
    return kernels_for(torch.empty(1)).name


class Passes(NamedTuple):
    """Results of all kernels for a training step of batch normalization, shortcut and leaky ReLU."""

    mean: Tensor
    m2: Tensor
    y: Tensor
    dbias: Tensor
    dweight: Tensor
    dresidual: Tensor
    dx: Tensor


def all_passes(
    x: Tensor, dy: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, activate: bool
) -> Passes:
    """Run every kernel, on a contiguous tensor on rank 0 and a channels-last one on rank 1."""
    kernels = kernels_for(x)
    assert kernels.name == "triton"
    if dist.get_rank() == 1:
        x, dy = (tensor.movedim(1, -1).contiguous().movedim(-1, 1) for tensor in (x, dy))
    mean, m2, count = kernels.moments(x)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    affine = ChannelAffine(mean.to(wide), (m2 / max(count, 1)).to(wide), EPS, weight, bias)
    if activate:
        y = kernels.normalize_activate(x, affine, residual, SLOPE)
        dbias, dweight, dz = kernels.reduce_grad_activate(dy, y, x, affine, SLOPE)
    else:
        y, dz = kernels.normalize(x, affine), dy
        dbias, dweight = kernels.reduce_grad(dy, x, affine)
    dx = kernels.input_grad(dz, x, affine, dbias / max(count, 1), dweight / max(count, 1))
    assert y.dtype == dz.dtype == dx.dtype == x.dtype
    assert dbias.dtype == dweight.dtype == wide
    assert y.stride() == dx.stride() == x.stride()
    return Passes(mean, m2, y, dbias, dweight, dz, dx)


def all_passes_without_warnings(*case: object) -> Passes:
    """Run all kernels without warnings: NumPy, used by the interpreter, warns about inf - inf."""
    with np.errstate(invalid="ignore", over="ignore"):
        return all_passes(*case)


def expected_passes(
    x: Tensor, dy: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, activate: bool
) -> Passes:
    """Expected results in float64, by the definition and autograd."""
    wide = [None if t is None else t.detach().double() for t in (x, weight, bias, residual)]
    x, weight, bias, residual = wide
    channels = x.shape[1]
    weight = torch.ones(channels, dtype=torch.float64) if weight is None else weight
    bias = torch.zeros(channels, dtype=torch.float64) if bias is None else bias
    residual = torch.zeros_like(x) if residual is None else residual
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias, residual)]
    y = oracle.normalize(x, weight, bias, EPS) + residual
    y = F.leaky_relu(y, SLOPE) if activate else y
    dx, dweight, dbias, dresidual = torch.autograd.grad((y * dy.double()).sum(), leaves)
    columns = x.detach().movedim(1, 0).flatten(1)
    mean = columns.mean(1)
    return Passes(mean, (columns - mean.unsqueeze(1)).square().sum(1), y.detach(), dbias, dweight, dresidual, dx)


def assert_close(got: Passes, expected: Passes, tolerance: float) -> None:
    for name, actual, target in zip(Passes._fields, got, expected, strict=True):
        size = max(1.0, target.abs().max().item())
        torch.testing.assert_close(
            actual.double(), target, rtol=0, atol=tolerance * size, msg=lambda m, n=name: f"{n}: {m}"
        )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, bool]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = [draw(st.integers(2, 9)), draw(st.integers(1, 80)), *draw(st.lists(st.integers(1, 9), max_size=3))]
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, dy, residual = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    weight, bias = (torch.randn(shape[1], generator=generator, dtype=torch.float64).to(wide) for _ in range(2))
    activate = draw(st.booleans())
    return (
        x,
        dy,
        weight if draw(st.booleans()) else None,
        bias if draw(st.booleans()) else None,
        residual if activate and draw(st.booleans()) else None,
        activate,
    )


@pytest.mark.distributed
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_equal_autograd_in_float64(
    case: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, bool], interpreters: Ranks
) -> None:
    expected = expected_passes(*case)
    for got in interpreters.run(all_passes, *case):
        assert_close(got, expected, TOLERANCE[case[0].dtype])


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_tiles_of_many_programs(dtype: torch.dtype, interpreters: Ranks) -> None:
    generator = torch.Generator().manual_seed(1)
    x, dy, residual = (torch.randn(3, 66, 20, 21, generator=generator).to(dtype) for _ in range(3))
    case = x, dy, *torch.randn(2, 66, generator=generator), residual, True
    expected = expected_passes(*case)
    for got in interpreters.run(all_passes, *case):
        assert_close(got, expected, TOLERANCE[dtype])


@pytest.mark.distributed
@pytest.mark.parametrize("first", [1.0, 0.0, 1e6])
def test_a_mean_of_a_thousand_standard_deviations(first: float, interpreters: Ranks) -> None:
    """The first value is near the others, at the origin, or far from everything."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, 3, 30, 31, generator=generator) + 1000
    x[0, :, 0, 0] *= first
    columns = x.double().movedim(1, 0).flatten(1)
    mean = columns.mean(1)
    m2 = (columns - mean.unsqueeze(1)).square().sum(1)
    for got in interpreters.run(all_passes, x, x, None, None, None, False):
        assert ((got.mean - mean) / (m2 / columns.shape[1]).sqrt()).abs().max() < 1e-6
        torch.testing.assert_close(got.m2, m2, rtol=TOLERANCE[x.dtype], atol=0)
        y = (columns - mean.unsqueeze(1)) * torch.rsqrt(m2 / columns.shape[1] + EPS).unsqueeze(1)
        # The mean is given in float32, of which a unit at 1000 is 6e-5 standard deviations.
        torch.testing.assert_close(got.y.double().movedim(1, 0).flatten(1), y, rtol=1e-5, atol=1e-4)


@pytest.mark.distributed
def test_empty_batches_and_single_values(interpreters: Ranks) -> None:
    for shape in ((0, 3), (0, 3, 4, 4), (2, 3, 0)):
        for got in interpreters.run(all_passes, torch.empty(shape), torch.empty(shape), None, None, None, True):
            assert not torch.cat([got.mean, got.m2, got.dbias, got.dweight]).any()
            assert got.y.shape == got.dresidual.shape == got.dx.shape == shape
    one = torch.tensor([[3.0, -4.0]])
    for got in interpreters.run(all_passes, one, one, None, torch.tensor([0.5, 0.25]), None, False):
        assert got.mean.tolist() == [3, -4]
        assert not got.m2.any()
        assert got.y.tolist() == [[0.5, 0.25]]


@pytest.mark.distributed
def test_what_is_not_finite_stays_in_its_channel_and_is_seen(interpreters: Ranks) -> None:
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(3))
    x[2, 0, 1], x[1, 2, 4] = float("nan"), float("inf")
    for got in interpreters.run(all_passes_without_warnings, x, x.nan_to_num(0, 0), None, None, None, False):
        assert got.mean.isfinite().tolist() == [False, True, False]
        assert got.m2.isfinite().tolist() == [False, True, False]
        assert got.y[:, 1].isfinite().all()


def train(batch: Batch) -> oracle.Step:
    assert chosen_kernels() == "triton"
    return steps.train(batch)


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_layer_equals_one_process(dtype: torch.dtype, channels_last: bool, interpreters: Ranks) -> None:
    batch = random_batch(4, [6, 5, 3], [3, 4], dtype=dtype, channels_last=channels_last)
    assert_equals_one_process(batch, interpreters.run(train, batch))


@pytest.mark.distributed
def test_the_layer_with_an_empty_rank_and_a_mask(interpreters: Ranks) -> None:
    batch = random_batch(5, [6, 7], [5, 0], dtype=torch.float32)
    batch.mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(5)) < 0.7
    assert_equals_one_process(batch, interpreters.run(train, batch))


def test_nothing_imports_triton_unless_it_is_asked_for() -> None:
    script = "import sys, torch, syncbn.norm; print('syncbn.norm.kernels.triton' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "SYNCBN_KERNELS"}
    output = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "False"


def test_choices_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [kernels.name for kernels in candidates("aten")] == ["aten_cpu", "aten_cuda"]
    with pytest.raises(ValueError, match="must be aten, native or triton, or unset for the fastest; got 'cuda'"):
        candidates("cuda")
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "syncbn.norm.kernels.triton", raising=False)
    monkeypatch.delattr(kernels, "triton", raising=False)
    with pytest.raises(ImportError, match="pip install triton, or leave SYNCBN_KERNELS unset"):
        candidates("triton")


def test_triton_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"needs a CUDA device, and torch finds none: .*TRITON_INTERPRET=1"):
        candidates("triton")
