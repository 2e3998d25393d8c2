"""Kernels for CUDA, those of `torch.nn.SyncBatchNorm`. None of them makes the host wait for the device."""

import torch
from torch import Tensor

from syncbn.norm.kernels.interface import ChannelAffine, Kernels
from syncbn.norm.kernels.plain import statistics_dtype


class AtenCudaKernels(Kernels):
    """ATen's kernels for synchronized batch normalization."""

    name = "aten_cuda"

    def serves(self, *tensors: Tensor) -> bool:
        """Whether all are on a CUDA device."""
        return all(tensor.device.type == "cuda" for tensor in tensors)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """See `Kernels`."""
        channels, count = x.shape[1], x.numel() // x.shape[1]
        if count == 0:
            zero = torch.zeros(channels, device=x.device, dtype=statistics_dtype(x))
            return zero, zero, 0
        mean, invstd = torch.batch_norm_stats(_dense(x), 0.0)
        # With eps = 0 the kernel returns 1/std, and 0 for a variance of 0.
        return mean, torch.where(invstd > 0, invstd.double() ** -2 * count, 0.0), count

    def normalize(self, x: Tensor, affine: ChannelAffine) -> Tensor:
        """See `Kernels`."""
        if x.numel() == 0:
            return torch.empty_like(x)
        mean, var, eps, weight, bias = affine
        return torch.batch_norm_elemt(_dense(x), weight, bias, mean, (var + eps).rsqrt(), eps)

    def reduce_grad(self, dy: Tensor, x: Tensor, affine: ChannelAffine) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        mean, var, eps, _, _ = affine
        if x.numel() == 0:
            return torch.zeros_like(mean), torch.zeros_like(mean)
        x = _dense(x)
        _, _, dy_xhat, total = torch.batch_norm_backward_reduce(
            _like(dy, x), x, mean, (var + eps).rsqrt(), torch.ones_like(mean), False, True, True
        )
        return total, dy_xhat

    def input_grad(self, dy: Tensor, x: Tensor, affine: ChannelAffine, mean_dy: Tensor, mean_dy_xhat: Tensor) -> Tensor:
        """See `Kernels`."""
        if x.numel() == 0:
            return torch.empty_like(x)
        x = _dense(x)
        # The kernel divides its sums by a count: pass the means and a count of one.
        one = torch.ones(1, device=x.device, dtype=torch.int32)
        std = (affine.var + affine.eps).sqrt()
        return torch.batch_norm_backward_elemt(
            _like(dy, x), x, affine.mean, std.reciprocal(), affine.weight, mean_dy, mean_dy_xhat * std, one
        )


ATEN_CUDA = AtenCudaKernels()


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=_memory_format(x))


def _like(dy: Tensor, x: Tensor) -> Tensor:
    return dy.contiguous(memory_format=_memory_format(x))


def _memory_format(x: Tensor) -> torch.memory_format:
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if channels_last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=channels_last):
        return channels_last
    return torch.contiguous_format
