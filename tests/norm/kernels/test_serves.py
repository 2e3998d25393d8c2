"""Tensors that differ from their memory: `serves` leaves them to kernels that read them correctly."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import syncbn
from syncbn.norm.core.kernels import candidates, kernels_for
from syncbn.norm.kernels.interface import ChannelAffine
from syncbn.norm.kernels.native import NATIVE
from syncbn.norm.kernels.plain import PLAIN


class Subclass(Tensor):
    """A subclass that torch treats like any tensor."""


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Representations of `x` other than contiguous memory.
HOLDS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.clone,
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda x: torch.stack([x, x + 9], dim=-1)[..., 0],
    "offset": lambda x: torch.cat([x[:1] + 9, x])[1:],
    "flipped": lambda x: x.flip(0).contiguous().flip(0),
    "negative": lambda x: torch._neg_view(-x),
    "negative, sliced": lambda x: torch._neg_view(torch.cat([x, -x]))[len(x) :],
    "imaginary": lambda x: torch.complex(x + 9, -x).conj().imag,
    "imaginary, channels last": lambda x: torch.complex(x, -x).movedim(1, -1).contiguous().movedim(-1, 1).conj().imag,
    "half": lambda x: x.half(),
    "subclass": lambda x: x.clone().as_subclass(Subclass),
    "parameter": lambda x: nn.Parameter(x.clone()),
}
shapes = st.sampled_from([(6, 3), (4, 3, 5), (2, 3, 4, 5), (5, 1, 3, 3), (2, 3, 2, 2, 2)])
holds = st.sampled_from(list(HOLDS))


@given(shape=shapes, how_x=holds, how_dy=holds, how_residual=holds, fused=st.booleans())
def test_a_step_equals_that_of_the_numbers(
    shape: tuple[int, ...], how_x: str, how_dy: str, how_residual: str, fused: bool
) -> None:
    x, dy, residual = (HOLDS[how](numbers(shape, seed)) for seed, how in enumerate((how_x, how_dy, how_residual)))
    layer = syncbn.SyncBatchNorm(shape[1], fuse_activation=fused)
    y = layer(x.detach().requires_grad_())
    residual, dy = residual.to(y.dtype), dy.to(y.dtype)
    y = F.leaky_relu(y + residual)
    got = torch.autograd.grad(y, list(layer.parameters()), dy)

    wide = copy.deepcopy(layer).double()
    peer = F.batch_norm(x.detach().double(), None, None, wide.weight, wide.bias, training=True)
    peer = F.leaky_relu(peer + residual.double())
    expected = torch.autograd.grad(peer, list(wide.parameters()), dy.double())
    tolerance = 2e-2 if torch.float16 in (x.dtype, y.dtype) else 1e-4
    for actual, target in zip((y, *got), (peer, *expected), strict=True):
        torch.testing.assert_close(actual.detach().double(), target.detach(), rtol=tolerance, atol=tolerance)


@given(shape=shapes, how_x=holds, how_dy=holds)
def test_the_gradient_of_the_input_is_that_of_the_numbers(shape: tuple[int, ...], how_x: str, how_dy: str) -> None:
    x, dy = HOLDS[how_x](numbers(shape, 0)).detach().requires_grad_(), HOLDS[how_dy](numbers(shape, 1))
    layer, leaf = syncbn.SyncBatchNorm(shape[1]), x.detach().double().requires_grad_()
    y = layer(x)
    (got,) = torch.autograd.grad(y, x, dy.to(y.dtype))
    (expected,) = torch.autograd.grad(F.batch_norm(leaf, None, None, training=True), leaf, dy.double())
    tolerance = 2e-2 if torch.float16 in (x.dtype, dy.dtype) else 1e-4
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance, check_stride=False)


@pytest.mark.parametrize("hold", ["negative", "imaginary", "half", "subclass"])
def test_the_library_serves_float32_in_memory_alone(hold: str) -> None:
    x = numbers((4, 3), 0)
    assert kernels_for(x) is NATIVE
    assert kernels_for(HOLDS[hold](x)) is not NATIVE
    assert kernels_for(x, HOLDS[hold](x)) is not NATIVE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_zeros_without_memory(dtype: torch.dtype, fused: bool) -> None:
    x = numbers((4, 3, 2), 0).to(dtype).requires_grad_()
    y = F.relu(syncbn.SyncBatchNorm(3, fuse_activation=fused).to(dtype)(x))
    (dx,) = torch.autograd.grad(y, x, torch._efficientzerotensor(y.shape, dtype=dtype))
    assert dx.shape == x.shape
    assert not dx.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [False, True])
def test_batched_gradients_are_those_one_by_one(dtype: torch.dtype, fused: bool) -> None:
    x, dys = numbers((4, 3, 2), 0).to(dtype).requires_grad_(), numbers((5, 4, 3, 2), 1).to(dtype)
    layer = syncbn.SyncBatchNorm(3, fuse_activation=fused).to(dtype)
    y = F.leaky_relu(layer(x))
    inputs = (x, *layer.parameters())
    batched = torch.autograd.grad(y, inputs, dys, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(y, inputs, dy, retain_graph=True) for dy in dys]
    for got, expected in zip(batched, zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(expected))


def test_vectorized_jacobian_is_the_plain_one() -> None:
    x = numbers((4, 2), 0)
    layer = syncbn.SyncBatchNorm(2)
    jacobians = [torch.autograd.functional.jacobian(layer, x, vectorize=vectorize) for vectorize in (False, True)]
    torch.testing.assert_close(*jacobians)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 2)])
def test_gradcheck_with_batched_gradients(shape: tuple[int, ...]) -> None:
    layer = syncbn.SyncBatchNorm(3).double()
    x = numbers(shape, 0).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,), check_batched_grad=True)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*deprecated")
def test_a_trace_in_training_holds_for_other_batches() -> None:
    layer, peer = syncbn.SyncBatchNorm(3), nn.BatchNorm2d(3)
    traced = torch.jit.trace(layer, numbers((4, 3, 5, 5), 0), check_trace=False)
    layer.reset_running_stats()
    x = numbers((7, 3, 2, 2), 1)
    torch.testing.assert_close(traced(x), peer(x))
    torch.testing.assert_close(layer.running_var, peer.running_var)


def test_defaults_of_the_interface_follow_from_the_abstract_passes() -> None:
    """The inherited passes of ATen's kernels equal those of `plain`, which overrides them."""
    aten = candidates("aten")[0]
    x, dy, residual = (numbers((4, 3, 5), seed) for seed in range(3))
    affine = ChannelAffine(numbers((3,), 3), numbers((3,), 4).square() + 0.1, 1e-5, numbers((3,), 5), numbers((3,), 6))
    for slope in (0.0, 0.1, 1.0):
        y = aten.normalize_activate(x, affine, residual, slope)
        torch.testing.assert_close(y, PLAIN.normalize_activate(x, affine, residual, slope))
        got, expected = (kernels.reduce_grad_activate(dy, y, x, affine, slope) for kernels in (aten, PLAIN))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
