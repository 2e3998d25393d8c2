"""Both sets of kernels for float32 on CPU against float64, and the fallback without a compiler."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import syncbn
from syncbn.norm.core.kernels import kernels_for
from syncbn.norm.kernels import build
from syncbn.norm.kernels.aten_cpu import ATEN_CPU
from syncbn.norm.kernels.interface import ChannelAffine
from syncbn.norm.kernels.native import NATIVE, library
from syncbn.norm.kernels.plain import PLAIN

EPS = 1e-5
KERNELS = [pytest.param(kernels, id=kernels.name) for kernels in (ATEN_CPU, NATIVE)]

shapes = st.one_of(
    st.tuples(st.integers(1, 200), st.integers(1, 70)),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 70)),
    st.tuples(st.integers(1, 6), st.integers(1, 20), st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)),
)


@pytest.fixture(autouse=True, scope="module")
def _compiled():
    """Require a compiler, without which the tests would check nothing."""
    assert not isinstance(library(), str), library()


def some(*shape: int, channels_last: bool = False, seed: int = 0) -> Tensor:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else tensor


def wide(argument: Tensor | ChannelAffine) -> Tensor | ChannelAffine:
    """Convert to float64."""
    if isinstance(argument, ChannelAffine):
        return ChannelAffine(*(wide(part) if isinstance(part, Tensor) else part for part in argument))
    return argument.double()


def far_off(x: Tensor) -> Tensor:
    """Shift every channel to a different mean, up to 1000 standard deviations away."""
    return x + torch.linspace(-1000, 1000, x.shape[1]).view(-1, *[1] * (x.dim() - 2))


@pytest.mark.parametrize("kernels", KERNELS)
@given(shape=shapes, channels_last=st.booleans(), far=st.booleans())
def test_moments_are_those_in_float64(kernels, shape, channels_last, far):
    x = some(*shape, channels_last=channels_last)
    x = far_off(x) if far else x
    mean, m2, count = kernels.moments(x)
    var, true_mean = torch.var_mean(x.double(), [0, *range(2, x.dim())], correction=0)
    assert count == x.numel() // x.shape[1]
    scale = var.sqrt() + 1e-3
    torch.testing.assert_close(mean / scale, true_mean / scale, rtol=1e-12, atol=1e-6)
    torch.testing.assert_close(m2 / count, var, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(32, 32, 1, 1), (32, 16, 2, 2), (512, 8, 3, 1), (64, 8, 7, 7), (2000, 8)])
def test_sums_over_small_images_are_as_accurate_as_those_over_large_ones(shape, channels_last):
    x = some(*shape, channels_last=channels_last) + 1
    _, m2, count = NATIVE.moments(x)
    var = torch.var(x.double(), [0, *range(2, x.dim())], correction=0)
    torch.testing.assert_close(m2 / count, var, rtol=3e-7, atol=0)


@pytest.mark.parametrize("kernels", KERNELS)
@given(shape=shapes, channels_last=st.booleans(), affine=st.booleans())
def test_passes_are_those_in_float64(kernels, shape, channels_last, affine):
    x, dy = (some(*shape, channels_last=channels_last, seed=seed) for seed in range(2))
    channels = x.shape[1]
    mean, mean_dy, mean_dy_xhat, bias = some(4, channels, seed=2)
    var, weight = some(2, channels, seed=3).abs() + 0.1
    weight, bias = (weight, bias) if affine else (None, None)

    affine = ChannelAffine(mean, var, EPS, weight, bias)

    def both(name: str, *arguments):
        return getattr(kernels, name)(*arguments), getattr(PLAIN, name)(*map(wide, arguments))

    y, expected = both("normalize", x, affine)
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5)
    assert y.stride() == x.stride()
    sums, expected_sums = both("reduce_grad", dy, x, affine)
    for got, want in zip(sums, expected_sums, strict=True):
        torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-5 * (x.numel() / channels) ** 0.5)
    dx, expected = both("input_grad", dy, x, affine, mean_dy, mean_dy_xhat)
    torch.testing.assert_close(dx, expected.float(), rtol=1e-5, atol=1e-4)
    assert dx.stride() == x.stride()


@given(shape=shapes, channels_last=st.booleans(), residual=st.booleans(), slope=st.sampled_from([0.0, 0.01, 1.0]))
def test_activated_passes_are_the_composed_ones(shape, channels_last, residual, slope):
    x, dy, other = (some(*shape, channels_last=channels_last, seed=seed) for seed in range(3))
    channels = x.shape[1]
    (mean, bias), (var, weight) = some(2, channels, seed=3), some(2, channels, seed=4).abs() + 0.1

    affine = ChannelAffine(mean, var, EPS, weight, bias)
    y = NATIVE.normalize_activate(x, affine, other if residual else None, slope)
    z = PLAIN.normalize(x.double(), wide(affine))
    z = z + other.double() if residual else z
    torch.testing.assert_close(y, torch.nn.functional.leaky_relu(z, slope).float(), rtol=1e-5, atol=1e-5)

    *sums, dz = NATIVE.reduce_grad_activate(dy, y, x, affine, slope)
    torch.testing.assert_close(dz, torch.where(y > 0, dy, slope * dy), rtol=0, atol=0)
    for got, want in zip(sums, PLAIN.reduce_grad(dz.double(), x.double(), wide(affine)), strict=True):
        torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-5 * (x.numel() / channels) ** 0.5)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 41, 229, 229), (3, 1031, 37, 37), (9, 700, 26, 27), (4200, 1001)])
def test_passes_over_tensors_beyond_the_caches_are_those_in_float64(shape, channels_last):
    """They are fetched ahead, and what they write is streamed past the caches, from any address on."""
    x, dy, residual = (some(*shape, channels_last=channels_last, seed=seed) for seed in range(3))
    assert x.numel() > 1 << 22
    per_channel = torch.linspace(0.5, 2, shape[1])
    affine = ChannelAffine(per_channel - 1, per_channel, EPS, -per_channel, per_channel.flip(0))
    passes = {
        "normalize": (x, affine),
        "normalize_activate": (x, affine, residual, 0.1),
        "reduce_grad": (dy, x, affine),
        "reduce_grad_activate": (dy, residual, x, affine, 0.1),
        "input_grad": (dy, x, affine, per_channel, per_channel - 1),
    }
    mean, m2, count = NATIVE.moments(x)
    var, true_mean = torch.var_mean(x.double(), [0, *range(2, x.dim())], correction=0)
    torch.testing.assert_close(mean, true_mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(m2 / count, var, rtol=1e-6, atol=0)
    for name, arguments in passes.items():
        found = getattr(NATIVE, name)(*arguments)
        right = getattr(PLAIN, name)(*(a if isinstance(a, float) else wide(a) for a in arguments))
        found, right = (part if isinstance(part, tuple) else (part,) for part in (found, right))
        for mine, exact in zip(found, right, strict=True):
            torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()), msg=name)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_not_finite_stays_so_in_its_channel(special, channels_last):
    x = some(4, 3, 9, 9, channels_last=channels_last)
    x[2, 1, 4, 4] = special
    mean, m2, _ = NATIVE.moments(x)
    assert mean.isfinite().tolist() == [True, False, True]
    assert m2.isfinite().tolist() == [True, False, True]
    y = NATIVE.normalize(x, ChannelAffine(torch.zeros(3), torch.ones(3), EPS))
    assert torch.equal(y.isfinite(), x.isfinite())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(8, 64, 40, 40), (4, 67, 129, 129)])
def test_threads_do_not_change_a_bit(channels_last, shape):
    x, dy = (some(*shape, channels_last=channels_last, seed=seed) for seed in range(2))
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        layer = syncbn.SyncBatchNorm(shape[1])
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        results.append([y, *torch.autograd.grad(y, (leaf, *layer.parameters()), dy), *layer.buffers()])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_kernels_are_native_only_for_numbers_in_memory():
    assert kernels_for(torch.zeros(2, 3)) is NATIVE
    assert kernels_for(torch.zeros(2, 3, dtype=torch.float64)) is not NATIVE
    assert kernels_for(torch.zeros(0, 3)) is not NATIVE
    assert kernels_for(torch.zeros(2, 3, device="meta")) is not NATIVE
    with FakeTensorMode() as mode:
        assert kernels_for(mode.from_tensor(torch.zeros(2, 3))) is not NATIVE
    with FlopCounterMode(display=False):
        assert kernels_for(torch.zeros(2, 3)) is not NATIVE


def test_a_machine_without_compiler_trains():
    code = """
import torch, syncbn
from syncbn.norm.core.kernels import kernels_for
from syncbn.norm.kernels.aten_cpu import ATEN_CPU
from syncbn.norm.kernels.native import library
assert "nowhere" in library(), library()
x = torch.randn(8, 3, 5, 5, requires_grad=True)
assert kernels_for(x) is ATEN_CPU
layer, peer = syncbn.SyncBatchNorm(3), torch.nn.BatchNorm2d(3)
torch.testing.assert_close(layer(x), peer(x))
torch.testing.assert_close(layer.running_var, peer.running_var)
"""
    environment = {"CXX": "/nowhere/g++", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch):
    broken = tmp_path / "g++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho no such instruction >&2; exit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "no such instruction" in str(build.load())
    assert list((tmp_path / "syncbn").iterdir()) == []


def test_a_cache_that_others_may_write_to_is_not_run_from(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = build.cache_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert "chmod 700" in str(build.load())


@pytest.mark.parametrize("kernels", KERNELS)
@given(rows=st.integers(1, 40), length=st.integers(1, 300), count=st.integers(1, 8), groups=st.integers(1, 3))
def test_row_dots_are_those_in_float64(kernels, rows, length, count, groups):
    rows *= groups
    b, *parts = (some(rows, length, seed=seed) for seed in range(count + 1))
    parts.append(some(groups, length, seed=count + 1))
    expected = torch.stack([(a.double().repeat_interleave(rows // len(a), 0) * b.double()).sum(1) for a in parts])
    torch.testing.assert_close(kernels.row_dots(parts, b), expected.float(), rtol=1e-5, atol=1e-5 * length**0.5)
