"""The passes on CUDA, by the kernels of `torch.nn.SyncBatchNorm`. None of them makes the host wait for the device."""

import torch
from torch import Tensor

from syncbn.norm.kernels.activation import activate_, activation_grad
from syncbn.norm.kernels.plain import row_dots, statistics_dtype

__all__ = [
    "input_grad",
    "moments",
    "normalize",
    "normalize_activate",
    "reduce_grad",
    "reduce_grad_activate",
    "row_dots",
]


def moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and M2 of (N, C, *), and the count."""
    channels, count = x.shape[1], x.numel() // x.shape[1]
    if count == 0:
        zero = torch.zeros(channels, device=x.device, dtype=statistics_dtype(x))
        return zero, zero, 0
    mean, invstd = torch.batch_norm_stats(_dense(x), 0.0)
    # With eps = 0 the kernel returns 1/std, and 0 for a variance of 0.
    return mean, torch.where(invstd > 0, invstd.double() ** -2 * count, 0.0), count


def normalize(x: Tensor, mean: Tensor, var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """y = (x - mean) / sqrt(var + eps) · weight + bias, in the dtype of `x`."""
    if x.numel() == 0:
        return torch.empty_like(x)
    return torch.batch_norm_elemt(_dense(x), weight, bias, mean, (var + eps).rsqrt(), eps)


def normalize_activate(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slope: float,
) -> Tensor:
    """y = a((x - mean) / sqrt(var + eps) · weight + bias + residual), where a(z) = z if z > 0 else slope · z."""
    return activate_(normalize(x, mean, var, eps, weight, bias), residual, slope)


def reduce_grad(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Σdy and Σdy·x̂ over this rank's samples."""
    if x.numel() == 0:
        return torch.zeros_like(mean), torch.zeros_like(mean)
    x = _dense(x)
    _, _, dy_xhat, total = torch.batch_norm_backward_reduce(
        _like(dy, x), x, mean, (var + eps).rsqrt(), torch.ones_like(mean), False, True, True
    )
    return total, dy_xhat


def reduce_grad_activate(
    dy: Tensor, y: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Σdz and Σdz·x̂ over this rank's samples, and dz: dy where y > 0, slope · dy elsewhere."""
    dz = activation_grad(dy, y, slope)
    return *reduce_grad(dz, x, mean, var, eps), dz


def input_grad(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor | None,
    mean_dy: Tensor,
    mean_dy_xhat: Tensor,
) -> Tensor:
    """dx = weight / sqrt(var + eps) · (dy - mean_dy - x̂ · mean_dy_xhat), in the dtype of `x`."""
    if x.numel() == 0:
        return torch.empty_like(x)
    x = _dense(x)
    # The kernel divides its sums by a count of its own: it is given the means, and a count of one.
    one = torch.ones(1, device=x.device, dtype=torch.int32)
    std = (var + eps).sqrt()
    return torch.batch_norm_backward_elemt(
        _like(dy, x), x, mean, std.reciprocal(), weight, mean_dy, mean_dy_xhat * std, one
    )


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=_memory_format(x))


def _like(dy: Tensor, x: Tensor) -> Tensor:
    return dy.contiguous(memory_format=_memory_format(x))


def _memory_format(x: Tensor) -> torch.memory_format:
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if channels_last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=channels_last):
        return channels_last
    return torch.contiguous_format
