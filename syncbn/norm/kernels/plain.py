"""The passes as differentiable, traceable operations, for any device, mask and order of derivative."""

from collections.abc import Sequence

import torch
from torch import Tensor


def moments(x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | int]:
    """Mean and M2 of (N, C, *), and the count; `mask` (N, 1, *) says what counts.

    Sums are taken about a constant near the data, so that they don't cancel when |mean| >> std.
    No samples give zeros that still depend on `x`: an empty rank's graph then has the collectives of every other's.
    """
    dims = _all_but_channels(x)
    values = x.to(statistics_dtype(x))
    if mask is None:
        count: Tensor | int = x.numel() // x.shape[1]
        near = values.detach()[:1].sum(dims, keepdim=True) / max(x[:1].numel() // x.shape[1], 1)
        centred = values - near
    else:
        count = mask.sum()
        near = torch.where(mask, values.detach(), 0).sum(dims, keepdim=True) / count.clamp(min=1)
        centred = torch.where(mask, values - near, 0)
    divisor = max(count, 1) if isinstance(count, int) else count.clamp(min=1)
    offset = centred.sum(dims)
    m2 = centred.square().sum(dims) - offset.square() / divisor
    return near.flatten() + offset / divisor, m2, count


def normalize(x: Tensor, mean: Tensor, var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """y = (x - mean) / sqrt(var + eps) · weight + bias, in the dtype of `x`."""
    y = _normalized(x, mean, var, eps)
    if weight is not None:
        y = y * _broadcast(weight, x)
    if bias is not None:
        y = y + _broadcast(bias, x)
    return y.to(x.dtype)


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
    z = normalize(x, mean, var, eps, weight, bias)
    if residual is not None:
        z = z + residual
    if slope == 1:
        return z
    return torch.relu(z) if slope == 0 else torch.nn.functional.leaky_relu(z, slope)


def reduce_grad(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Σdy and Σdy·x̂ over this rank's samples."""
    dims = _all_but_channels(x)
    dy = dy.to(mean.dtype)
    return dy.sum(dims), (dy * _normalized(x, mean, var, eps)).sum(dims)


def reduce_grad_activate(
    dy: Tensor, y: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Σdz and Σdz·x̂ over this rank's samples, and dz: dy where y > 0, slope · dy elsewhere."""
    dz = dy if slope == 1 else torch.where(y > 0, dy, 0 if slope == 0 else slope * dy)
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
    scale = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
    xhat = _normalized(x, mean, var, eps)
    centred = dy.to(mean.dtype) - _broadcast(mean_dy, x) - xhat * _broadcast(mean_dy_xhat, x)
    return (centred * _broadcast(scale, x)).to(x.dtype)


def moments_grad(x: Tensor, mean: Tensor, mean_dmean: Tensor, mean_dvar: Tensor) -> Tensor:
    """dx of the mean and the biased variance, for gradients divided by the count: dmean + 2·(x - mean)·dvar."""
    centred = x.to(mean.dtype) - _broadcast(mean, x)
    return (_broadcast(mean_dmean, x) + 2 * centred * _broadcast(mean_dvar, x)).to(x.dtype)


def row_dots(parts: Sequence[Tensor], b: Tensor) -> Tensor:
    """<a_r, b_r> for each row of `b` (R, D) and each a of `parts`: (K, R).

    A part (R, D) has a row for each, a part (G, D) one for each R / G neighbours.
    """
    return torch.stack([torch.einsum("gd,gnd->gn", a, b.view(len(a), -1, b.shape[1])).flatten() for a in parts])


def statistics_dtype(x: Tensor) -> torch.dtype:
    """The dtype of moments: never a half precision."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _normalized(x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return (x.to(mean.dtype) - _broadcast(mean, x)) * _broadcast((var + eps).rsqrt(), x)


def _broadcast(per_channel: Tensor, x: Tensor) -> Tensor:
    return per_channel.view(1, -1, *[1] * (x.dim() - 2))


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]
