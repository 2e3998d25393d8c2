"""Kernels of differentiable, traceable operations, for any device, mask and order of derivative."""

import torch
from torch import Tensor

from syncbn.norm.kernels.interface import ChannelAffine, Kernels


class PlainKernels(Kernels):
    """Passes as operations that autograd, `torch.compile` and `torch.func` support."""

    name = "plain"

    def serves(self, *tensors: Tensor) -> bool:
        """Return True."""
        return True

    def moments(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | int]:
        """Compute mean, M2 and count; only samples where `mask` (N, 1, *) is True count.

        Sums are taken about a constant near the data, to avoid cancellation when |mean| >> std. Without samples the
        result is zeros that depend on `x`, so that an empty rank's graph has the same collectives as the others'.
        """
        dims = _all_but_channels(x)
        values = x.to(statistics_dtype(x))
        if mask is None:
            count: Tensor | int = x.numel() // x.shape[1]  # under a trace with a dynamic batch, a torch.SymInt
            near = values.detach()[:1].sum(dims, keepdim=True) / max(x[:1].numel() // x.shape[1], 1)
            centred = values - near
        else:
            count = mask.sum()
            near = torch.where(mask, values.detach(), 0).sum(dims, keepdim=True) / count.clamp(min=1)
            centred = torch.where(mask, values - near, 0)
        if isinstance(count, Tensor):
            divisor: Tensor | int = count.clamp(min=1)
        else:  # `max` of a torch.SymInt would decide; the compiler of torch 2.8 knows no `torch.sym_max` of an int
            divisor = torch.sym_max(count, 1) if isinstance(count, torch.SymInt) else max(count, 1)
        offset = centred.sum(dims)
        m2 = centred.square().sum(dims) - offset.square() / divisor
        return near.flatten() + offset / divisor, m2, count

    def normalize(self, x: Tensor, affine: ChannelAffine) -> Tensor:
        """See `Kernels`."""
        y = _normalized(x, affine)
        if affine.weight is not None:
            y = y * _broadcast(affine.weight, x)
        if affine.bias is not None:
            y = y + _broadcast(affine.bias, x)
        return y.to(x.dtype)

    def normalize_activate(self, x: Tensor, affine: ChannelAffine, residual: Tensor | None, slope: float) -> Tensor:
        """See `Kernels`; without in-place writes, which autograd would refuse."""
        z = self.normalize(x, affine)
        if residual is not None:
            z = z + residual
        if slope == 1:
            return z
        return torch.relu(z) if slope == 0 else torch.nn.functional.leaky_relu(z, slope)

    def reduce_grad(self, dy: Tensor, x: Tensor, affine: ChannelAffine) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        dims = _all_but_channels(x)
        dy = dy.to(affine.mean.dtype)
        return dy.sum(dims), (dy * _normalized(x, affine)).sum(dims)

    def reduce_grad_activate(
        self, dy: Tensor, y: Tensor, x: Tensor, affine: ChannelAffine, slope: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernels`."""
        dz = dy if slope == 1 else torch.where(y > 0, dy, 0 if slope == 0 else slope * dy)
        return *self.reduce_grad(dz, x, affine), dz

    def input_grad(self, dy: Tensor, x: Tensor, affine: ChannelAffine, mean_dy: Tensor, mean_dy_xhat: Tensor) -> Tensor:
        """See `Kernels`."""
        scale = (affine.var + affine.eps).rsqrt()
        if affine.weight is not None:
            scale = scale * affine.weight
        xhat = _normalized(x, affine)
        centred = dy.to(affine.mean.dtype) - _broadcast(mean_dy, x) - xhat * _broadcast(mean_dy_xhat, x)
        return (centred * _broadcast(scale, x)).to(x.dtype)


PLAIN = PlainKernels()


def moments_grad(x: Tensor, mean: Tensor, mean_dmean: Tensor, mean_dvar: Tensor) -> Tensor:
    """Gradient dx of mean and biased variance, given gradients divided by the count: dmean + 2·(x - mean)·dvar."""
    centred = x.to(mean.dtype) - _broadcast(mean, x)
    return (_broadcast(mean_dmean, x) + 2 * centred * _broadcast(mean_dvar, x)).to(x.dtype)


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Dtype of moments; never half precision."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _normalized(x: Tensor, affine: ChannelAffine) -> Tensor:
    invstd = (affine.var + affine.eps).rsqrt()
    return (x.to(affine.mean.dtype) - _broadcast(affine.mean, x)) * _broadcast(invstd, x)


def _broadcast(per_channel: Tensor, x: Tensor) -> Tensor:
    return per_channel.view(1, -1, *[1] * (x.dim() - 2))


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]
