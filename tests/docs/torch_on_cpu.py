"""torch.nn.SyncBatchNorm's autograd function on CPU tensors, with replacements of its five CUDA kernels."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as Function


@contextlib.contextmanager
def kernels() -> Iterator[None]:
    """Register the kernels, by their formulas, for CPU tensors temporarily."""
    library = torch.library.Library("aten", "IMPL")
    for name, function in {
        "batch_norm_stats": _stats,
        "batch_norm_gather_stats_with_counts": _gather_stats,
        "batch_norm_elemt": _elemt,
        "batch_norm_backward_reduce": _backward_reduce,
        "batch_norm_backward_elemt": _backward_elemt,
    }.items():
        library.impl(name, function, "CPU")
    try:
        yield
    finally:
        library._destroy()


def forward(layer: nn.SyncBatchNorm, x: Tensor, group: Any, world_size: int) -> Tensor:
    """Training forward of the layer, as for a GPU input."""
    statistics = layer.running_mean, layer.running_var
    return Function.apply(x, layer.weight, layer.bias, *statistics, layer.eps, layer.momentum, group, world_size)


def _statistic(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _over(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _shaped(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x.to(_statistic(x))
    return x.mean(_over(x)), (x.var(_over(x), correction=0) + eps).rsqrt()


def _gather_stats(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    share = (counts / counts.sum())[:, None]
    total = (share * mean).sum(0)
    variance = (share * (invstd**-2 - eps + (mean - total) ** 2)).sum(0)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(total, momentum)
        running_var.lerp_(variance * counts.sum() / (counts.sum() - 1), momentum)
    return total, (variance + eps).rsqrt()


def _elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    return ((x - _shaped(mean, x)) * _shaped(invstd * weight, x) + _shaped(bias, x)).to(x.dtype)


def _backward_reduce(
    dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, *needed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sum_dy, sum_dy_xmu = dy.sum(_over(x)), (dy * (x - _shaped(mean, x))).sum(_over(x))
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy.clone()


def _backward_elemt(
    dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, sum_dy: Tensor, sum_dy_xmu: Tensor, n: Tensor
) -> Tensor:
    centred = (x - _shaped(mean, x)) * _shaped(invstd**2 * sum_dy_xmu / n.sum(), x)
    return (dy - _shaped(sum_dy / n.sum(), x) - centred) * _shaped(invstd * weight, x)
