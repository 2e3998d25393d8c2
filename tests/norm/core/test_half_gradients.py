"""Gradients of half precision are rounded once, at the end: no term is rounded that another one cancels."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import syncbn
from syncbn.norm.core.kernels import candidates
from syncbn.norm.kernels.interface import ChannelAffine
from tests.norm.test_every_norm import OPTIONS

# Of a rounding of the result, with which nothing goes wrong: half the distance of two neighbouring numbers.
ROUNDING = {torch.bfloat16: 2**-9, torch.float16: 2**-12}

WAYS = ("eager", "compiled", "transformed", "fused")


def step(layer: Any, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    y = layer(x)
    return torch.autograd.grad(y, (x, layer.weight, layer.bias), dy.to(y.dtype))


NORMS = ["adaptive", "batch", "batch_renorm", "decorrelated", "ghost", "learnable_momentum", "recurrent", "switchable"]
CASES = [
    *[("sync", way, last, dtype) for way in WAYS for last in (False, True) for dtype in ROUNDING],
    *[(name, way, False, torch.bfloat16) for name in NORMS for way in ("eager", "compiled")],
    *[(name, "transformed", False, torch.bfloat16) for name in ("adaptive", "decorrelated")],
]


@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize(("name", "way", "channels_last", "dtype"), CASES)
def test_a_mean_of_the_gradient_costs_no_digit(
    name: str, way: str, channels_last: bool, mean: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(6, 8, 5, 5, generator=generator) + shift for shift in (1.0, mean))
    memory = torch.channels_last if channels_last else torch.contiguous_format
    x, dy = (t.to(dtype).contiguous(memory_format=memory) for t in (x, dy))

    options = {"fuse_activation": True} if way == "fused" else OPTIONS.get(name, {})
    layer = syncbn.norm_layer(name, **options)(8)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(8, generator=generator) + 0.5)
    wide = copy.deepcopy(layer).double()
    expected = step(wide, x.double(), dy.double())
    if way == "transformed":
        layer.requires_grad_(True).track_running_stats = False
        _, vjp = torch.func.vjp(lambda x: layer(x), x)
        got: tuple[Tensor, ...] = vjp(dy)
    else:
        torch.compiler.reset()
        forward = torch.compile(layer, backend="aot_eager") if way == "compiled" else layer
        got = step(forward, x, dy)
    error = (got[0].double() - expected[0]).norm() / expected[0].norm()
    assert error < 1.2 * ROUNDING[dtype]
    for actual, target in zip(got[1:], expected[1:], strict=False):
        torch.testing.assert_close(actual.double(), target, rtol=5e-3, atol=2e-2 * (1 + mean))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", [(40, 8), (3, 8, 7), (3, 8, 5, 5), (2, 8, 2, 3, 4), (0, 8, 3)])
def test_the_kernel_for_half_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    aten, generator = candidates("aten")[0], torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    mean, mean_dy, mean_dy_xhat = (torch.randn(8, generator=generator) for _ in range(3))
    affine = ChannelAffine(mean, torch.rand(8, generator=generator) + 0.5, 1e-5, torch.randn(8, generator=generator))
    along = (1, 8, *[1] * (len(shape) - 2))
    invstd, scale = (t.double().view(along) for t in ((affine.var + 1e-5).rsqrt(), affine.weight))
    xhat = (x.double() - mean.double().view(along)) * invstd
    exact = scale * invstd * (dy.double() - mean_dy.double().view(along) - xhat * mean_dy_xhat.double().view(along))
    got = aten.input_grad(dy, x, affine, mean_dy, mean_dy_xhat)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, rtol=2.1 * ROUNDING[dtype], atol=1e-5)
