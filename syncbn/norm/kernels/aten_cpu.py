"""Kernels for CPU, by ATen's vectorized ones.

ATen has no kernels for synchronized statistics on CPU, but its ordinary ones can be used. In evaluation mode, with
given statistics, `native_batch_norm` scales and shifts in one pass. `native_batch_norm_backward` for only the affine
gradients returns Σa and Σa·x̂ of any tensor `a` in one pass; with a = x these give the moments.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from syncbn.norm.kernels.interface import PLAIN_TYPES, ChannelAffine, Kernels, in_memory
from syncbn.norm.kernels.plain import statistics_dtype

# Rows of a channels-last tensor per float32 accumulator: above some thousands its rounding error matters.
_ROWS = 4096
# Widest row that leaves the accumulators in the first-level cache.
_WIDTH = 1024
# mean² / var above which E[x²] - E[x]² loses more than a decimal digit of float32.
_FAR = 16.0
# mean² / var above which x·scale + (bias - mean·scale), ATen's way to normalize, does.
_FARTHER = 256.0

# Number of values that stay in the cache between two passes.
_CACHED = 1 << 18

_batch_norm: Any = torch.ops.aten.native_batch_norm
_batch_norm_backward: Any = torch.ops.aten.native_batch_norm_backward


class AtenCpuKernels(Kernels):
    """ATen's kernels for batch normalization in evaluation mode, which accept any statistics."""

    name = "aten_cpu"

    def serves(self, *tensors: Tensor) -> bool:
        """Whether all are on CPU and none is batched by vmap, since results are written in place."""
        return all(
            tensor.device.type == "cpu"
            and (type(tensor) not in PLAIN_TYPES or in_memory(tensor) or tensor.numel() == 0)
            for tensor in tensors
        )

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """See `Kernels`."""
        count = x.numel() // x.shape[1]
        x = dense(x)
        total, squares = _sums_about_zero(x)
        if not (total.square() > squares * (count * _FAR / (1 + _FAR))).any():
            mean = total.double() / max(count, 1)
            return mean, squares - total * mean, count
        # Again about a point near the data: float32 subtracts numbers of similar size without rounding.
        near = total / count
        total, squares = _sums_about_zero(x.to(near.dtype) - _along(near, x))
        offset = total.double() / count
        return near + offset, squares - total * offset, count

    def normalize(self, x: Tensor, affine: ChannelAffine) -> Tensor:
        """See `Kernels`."""
        mean, var = affine.mean, affine.var
        if (mean.square() > var * _FARTHER).any():
            shifted = x.to(mean.dtype) - _along(mean, x)
            return _scale_and_shift(shifted, affine._replace(mean=torch.zeros_like(mean))).to(x.dtype)
        return _scale_and_shift(dense(x), affine)

    def reduce_grad(self, dy: Tensor, x: Tensor, affine: ChannelAffine) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        x = dense(x)
        return _sums(like(dy, x), x, affine.mean, affine.var, affine.eps)

    def input_grad(self, dy: Tensor, x: Tensor, affine: ChannelAffine, mean_dy: Tensor, mean_dy_xhat: Tensor) -> Tensor:
        """See `Kernels`."""
        x = dense(x)
        dx = torch.empty_like(x)
        scale = _scale(affine)
        # dx = scale·dy + (x̂ · -scale·mean_dy_xhat - scale·mean_dy), where the part in brackets is also a normalization.
        others = affine._replace(weight=(scale * mean_dy_xhat).neg_(), bias=(scale * mean_dy).neg_())
        scale = _along(scale, x)
        # Two passes over chunks small enough that the second finds the first one's output in the cache.
        size = max(1, _CACHED // max(x[:1].numel(), 1))
        for x_part, dy_part, dx_part in zip(x.split(size), dy.split(size), dx.split(size), strict=True):
            if x.dtype == scale.dtype:
                _scale_and_shift(x_part, others, out=dx_part).addcmul_(dy_part, scale)
            else:  # the terms cancel where dy has a mean, so a half precision must not round them
                wide = _scale_and_shift(x_part.to(scale.dtype), others)
                dx_part.copy_(wide.addcmul_(dy_part.to(scale.dtype), scale))
        return dx

    def row_dots(self, parts: Sequence[Tensor], b: Tensor) -> Tensor:
        """See `Kernels`. For full-size parts the kernel of `reduce_grad` is four times as fast as `(a * b).sum(1)`."""
        zero, one = b.new_zeros(b.shape[0]), b.new_ones(b.shape[0])
        backward = partial(_batch_norm_backward, train=False, eps=0.0, output_mask=[False, True, False])
        whole = b.contiguous().unsqueeze(0)
        return torch.stack(
            [
                backward(a.contiguous().unsqueeze(0), whole, None, zero, one, None, None)[1]
                if len(a) == len(b)
                else super(AtenCpuKernels, self).row_dots([a], b)[0]
                for a in parts
            ]
        )


ATEN_CPU = AtenCpuKernels()


def _sums_about_zero(x: Tensor) -> tuple[Tensor, Tensor]:
    """Σx and Σx²."""
    zero = torch.zeros(x.shape[1], dtype=statistics_dtype(x), device=x.device)
    one = torch.ones_like(zero)
    return _sums(x, x, zero, one, 0.0)


def _sums(a: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Σa and Σa·x̂ of tensors in the same memory format."""
    if x.numel() == 0:  # ATen divides by the number of samples
        return torch.zeros_like(mean), torch.zeros_like(mean)
    repeats = 1
    if not x.is_contiguous():
        repeats = _side_by_side(x.numel() // x.shape[1], x.shape[1])
        a, x = _rows(a, repeats), _rows(x, repeats)
    if repeats > 1:
        mean, var = (s.expand(repeats, -1).reshape(-1) for s in (mean, var))
    _, products, total = _batch_norm_backward(a, x, None, mean, var, None, None, False, eps, [False, True, True])
    if repeats > 1:
        products, total = products.view(repeats, -1).sum(0), total.view(repeats, -1).sum(0)
    return total, products


def _scale_and_shift(x: Tensor, affine: ChannelAffine, out: Tensor | None = None) -> Tensor:
    """(x - mean) / sqrt(var + eps) · weight + bias. A new tensor, not a view, for in-place operations after it."""
    mean, var, eps, weight, bias = affine
    y = torch.empty_like(x) if out is None else out
    if x.numel() == 0:
        return y
    if x.is_contiguous() or x.dtype != mean.dtype:
        source, target = (x, y) if x.is_contiguous() else (_rows(x), _rows(y))
        unused = mean.new_empty(0)
        _batch_norm.out(
            source, weight, bias, mean, var, False, 0.0, eps, out=target, save_mean=unused, save_invstd=unused
        )
        return y
    # For channels-last this takes less than half the time of ATen's kernel.
    scale = _scale(affine)
    shift = (-mean * scale) if bias is None else torch.addcmul(bias, mean, scale, value=-1)
    torch.addcmul(shift, _rows(x), scale, out=_rows(y))
    return y


def _scale(affine: ChannelAffine) -> Tensor:
    """weight / sqrt(var + eps)."""
    scale = (affine.var + affine.eps).rsqrt_()
    return scale if affine.weight is None else scale.mul_(affine.weight)


def dense(x: Tensor) -> Tensor:
    """`x` if it is contiguous or channels last, with any number of dimensions, otherwise a contiguous copy."""
    return x if x.is_contiguous() or _is_channels_last(x) else x.contiguous()


def like(dy: Tensor, x: Tensor) -> Tensor:
    """`dy` in the layout of `x`, which is dense."""
    if x.is_contiguous():
        return dy.contiguous()
    return dy if _is_channels_last(dy) else dy.movedim(1, -1).contiguous().movedim(-1, 1)


def _is_channels_last(x: Tensor) -> bool:
    # For images the first check is enough, and takes a tenth of the time.
    return (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)) or x.movedim(1, -1).is_contiguous()


def _rows(x: Tensor, repeats: int = 1) -> Tensor:
    """View a channels-last tensor as (rows, repeats · C), since ATen's kernels don't support 3-D channels last.

    `repeats` rows side by side distribute a sum over as many accumulators.
    """
    return x.movedim(1, -1).view(-1, repeats * x.shape[1])


def _side_by_side(rows: int, channels: int) -> int:
    repeats = 1
    while rows > _ROWS * repeats and rows % (2 * repeats) == 0 and 2 * repeats * channels <= _WIDTH:
        repeats *= 2
    return repeats


def _along(per_channel: Tensor, x: Tensor) -> Tensor:
    return per_channel.view(-1, *[1] * (x.dim() - 2))
