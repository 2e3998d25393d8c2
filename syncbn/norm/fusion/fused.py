"""Normalization, sum with a shortcut and activation as one function, and what it saves for its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from syncbn.norm.core.kernels import kernels_for
from syncbn.norm.core.moments import all_means, attach_moments
from syncbn.norm.core.shared_options import Memory
from syncbn.norm.fusion.recomputed import Recomputed
from syncbn.norm.kernels.interface import ChannelAffine, Kernels
from syncbn.norm.kernels.plain import PLAIN

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


# Smallest |γ| that `invert` uses: x̂ = (z - β) / γ loses precision by a factor of 1 / |γ|.
SMALLEST_SCALE = 1e-3


class Normalization(NamedTuple):
    """A normalization to compute: the input and all ranks' moments `mean`, `var` and `count`."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows a method of tuple
    eps: float
    group: ProcessGroup | None
    memory: Memory

    def activate(self, residual: Tensor | None, slope: float) -> Tensor:
        """Compute y = a(x̂·weight + bias + residual), a(z) = z for z > 0, slope·z elsewhere; slope 1 is no activation.

        Raises:
            ValueError: `memory="invert"` with a slope of 0, which can't be inverted.
        """
        x, weight, bias, mean, var, count, eps, group, memory = self
        if memory == "invert":
            if slope == 0:
                raise ValueError(
                    'memory="invert" computes the input of an activation from its output, which ReLU doesn\'t allow: '
                    'use LeakyReLU, or memory="recompute"'
                )
            return _Invertible.apply(x, weight, bias, residual, mean, var, count, eps, slope, group)
        recompute = memory == "recompute" and residual is None
        y = _Activated.apply(x, weight, bias, residual, mean, var, count, eps, slope, group, recompute)
        return Recomputed.of(y, _output_again) if recompute and y.requires_grad else y


class ReverseMode(torch.autograd.Function):
    """Autograd function that refuses forward-mode derivatives with a message."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise NotImplementedError("SyncBatchNorm in training has no forward-mode derivative: use reverse mode")


class _Activated(ReverseMode):
    """Fused function that saves x, and y unless `Recomputed` can recompute it from x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
        slope: float,
        group: ProcessGroup | None,
        recompute: bool,
    ) -> Tensor:
        y = _activated(x, ChannelAffine(mean, var, eps, weight, bias), residual, slope)
        ctx.save_for_backward(x, weight, bias, mean, var, count, None if recompute or slope == 1 else y)
        ctx.eps, ctx.slope, ctx.group = eps, slope, group
        ctx.again = None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _, mean, var, count, y = _saved(ctx)
        if torch.is_grad_enabled():  # create_graph=True: this computation will be differentiated
            kernels: Kernels = PLAIN
            mean, var = attach_moments(x, mean, var, count, ctx.group)
        else:
            kernels = kernels_for(x, dy)
        affine = ChannelAffine(mean, var, ctx.eps, weight)
        if ctx.slope == 1:
            dz = dy
            sum_dz, sum_dz_xhat = kernels.reduce_grad(dy, x, affine)
        else:
            sum_dz, sum_dz_xhat, dz = kernels.reduce_grad_activate(dy, y, x, affine, ctx.slope)
        dx = None
        if ctx.needs_input_grad[0]:
            means = all_means(sum_dz, sum_dz_xhat, count, ctx.group)
            dx = kernels.input_grad(dz, x, affine, *means)
        return _gradients(ctx, dx, sum_dz_xhat, sum_dz, dz)


def _output_again(node: Any) -> Tensor:
    """Recompute the output of an `_Activated` that hasn't saved it; the node's own backward pass, next, reuses it.

    Saved tensors are unpacked only once, as activation checkpointing requires.
    """
    if node.again is None:
        node.again = _with_output(node.saved_tensors, node.eps, node.slope)
    return node.again[-1]


def _activated(x: Tensor, affine: ChannelAffine, residual: Tensor | None, slope: float) -> Tensor:
    kernels = kernels_for(x) if residual is None else kernels_for(x, residual)
    return kernels.normalize_activate(x, affine, residual, slope)


def _saved(ctx: Any) -> tuple[Any, ...]:
    saved, ctx.again = ctx.again or ctx.saved_tensors, None
    if saved[-1] is None and ctx.slope != 1:  # the user of y hasn't saved it, or needs no gradient
        return _with_output(saved, ctx.eps, ctx.slope)
    return saved


def _with_output(saved: tuple[Any, ...], eps: float, slope: float) -> tuple[Any, ...]:
    x, weight, bias, mean, var, count, _ = saved
    with torch.no_grad():
        y = _activated(x, ChannelAffine(mean, var, eps, weight, bias), None, slope)
    return x, weight, bias, mean, var, count, y


class _Invertible(ReverseMode):
    """Fused function that saves y and the shortcut, which neighbouring layers save anyway, instead of x or x̂.

    With w = a⁻¹(y) - residual = x̂·weight + bias, the kernels use w in place of x: normalized by the mean `bias` and
    the standard deviation |weight|, it is x̂·sign(weight).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
        slope: float,
        group: ProcessGroup | None,
    ) -> Tensor:
        y = _activated(x, ChannelAffine(mean, var, eps, weight, bias), residual, slope)
        ctx.save_for_backward(y, weight, bias, residual, var, count)
        ctx.eps, ctx.slope, ctx.group = eps, slope, group
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                'memory="invert" has no second derivative, since the input it would need isn\'t kept: use '
                'memory="keep" or "recompute" with create_graph=True'
            )
        y, weight, bias, residual, var, count = ctx.saved_tensors
        weight = torch.ones_like(var) if weight is None else weight
        bias = torch.zeros_like(var) if bias is None else bias
        w = y if ctx.slope == 1 else torch.nn.functional.leaky_relu(y, 1 / ctx.slope)
        if residual is not None:
            w = w - residual
        kernels = kernels_for(y, dy)
        affine = ChannelAffine(bias, weight.square(), 0.0)
        sum_dz, sum_dz_xhat, dz = kernels.reduce_grad_activate(dy, y, w, affine, ctx.slope)
        dx = None
        if ctx.needs_input_grad[0]:
            means = all_means(sum_dz, sum_dz_xhat, count, ctx.group)
            scale = (var + ctx.eps).rsqrt() * weight * weight.abs()
            dx = kernels.input_grad(dz, w, affine._replace(weight=scale), *means)
        return _gradients(ctx, dx, sum_dz_xhat * weight.sign(), sum_dz, dz)[:-1]


def _gradients(ctx: Any, dx: Tensor | None, *others: Tensor) -> tuple[Tensor | None, ...]:
    """Requested gradients of x, weight, bias and residual; None for the others.

    γ and β get this rank's share: DDP averages the ranks'.
    """
    asked = zip(others, ctx.needs_input_grad[1:4], strict=True)
    return dx, *(grad if needed else None for grad, needed in asked), *[None] * 7


def check_memory(memory: str, fuse_activation: bool) -> None:
    """Raise `ValueError` for a memory mode without `fuse_activation`."""
    if memory != "keep" and not fuse_activation:
        raise ValueError(f"memory={memory!r} is about a norm fused with its activation: add fuse_activation=True")


def away_from_zero(weight: Tensor) -> Tensor:
    """γ, clamped to ±`SMALLEST_SCALE` away from 0; the gradient passes through unchanged."""
    bounded = torch.where(
        weight.abs() < SMALLEST_SCALE, torch.full_like(weight, SMALLEST_SCALE).copysign(weight), weight
    )
    return weight + (bounded - weight).detach()


def check_scale(weight: Tensor) -> None:
    """Raise `ValueError` where `away_from_zero` would change γ."""
    smallest = weight.detach().abs().min().item()
    if smallest < SMALLEST_SCALE:
        raise ValueError(
            f'memory="invert" divides by γ, and the smallest |γ| here is {smallest:.2g}, below {SMALLEST_SCALE}: leave '
            'the layer out with exclude=, or use memory="recompute"'
        )
