"""Arithmetic on a few numbers of every channel on CPU: one call of C++ instead of ten operations of 1 to 3 µs each.

A small layer takes less time than these operations. They are the same as in `syncbn.norm.core.moments` and
`syncbn.norm.core.tracking`, which are for all other tensors, devices and modes.
"""

import torch
from torch import Tensor

from syncbn.norm.core import compat
from syncbn.norm.core.kernels import has_native
from syncbn.norm.kernels.native import holds_numbers, run


def serve(*tensors: Tensor) -> bool:
    """Whether all are plain float64 numbers on CPU, of which no derivative is wanted, and nothing sees operations."""
    if torch.compiler.is_compiling() or not has_native() or compat.is_transformed() or compat.in_dispatch_mode():
        return False
    wanted = torch.is_grad_enabled()
    for tensor in tensors:  # noqa: SIM110  # a generator takes longer than its checks
        if not _is_plain(tensor, torch.float64) or (wanted and tensor.requires_grad):
            return False
    return True


def _is_plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    return holds_numbers(tensor, dtype) and tensor.is_contiguous()


def pack(count: Tensor, mean: Tensor, m2: Tensor) -> Tensor:
    """Sums of moments to send, (2C + 1): n·mean, M2 + n·mean², n."""
    channels = mean.numel()
    sums = torch.empty(2 * channels + 1, dtype=torch.float64, device=mean.device)
    run("pack_moments", count, mean, m2, channels, sums)
    return sums


def unpack(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and M2 of such sums."""
    channels = sums.numel() // 2
    count = torch.empty((), dtype=torch.float64, device=sums.device)
    mean, m2 = torch.empty(2, channels, dtype=torch.float64, device=sums.device).unbind()
    run("unpack_moments", sums, channels, count, mean, m2)
    return count, mean, m2


def statistics(count: Tensor, mean: Tensor, m2: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance in float32."""
    channels = mean.numel()
    to_mean, to_var = torch.empty(2, channels, dtype=torch.float32, device=mean.device).unbind()
    run("statistics", count, mean, m2, channels, to_mean, to_var)
    return to_mean, to_var


def means(sums: Tensor, count: Tensor) -> Tensor:
    """sums / max(count, 1) in float32."""
    divided = torch.empty(sums.numel(), dtype=torch.float32, device=sums.device)
    run("means", sums, count, sums.numel(), divided)
    return divided


def track(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    moments: tuple[Tensor, Tensor, Tensor],
    momentum: float | None,
) -> bool:
    """Update running statistics by count, mean and M2, which `serve`; False if they aren't plain float32."""
    if not (
        _is_plain(running_mean, torch.float32)
        and _is_plain(running_var, torch.float32)
        and _is_plain(num_batches_tracked, torch.int64)
    ):
        return False
    buffers = running_mean, running_var, num_batches_tracked
    run("track", *moments, running_mean.numel(), -1.0 if momentum is None else momentum, *buffers)
    for buffer in buffers:  # for autograd, which refuses to use what was saved and has changed
        torch.autograd.graph.increment_version(buffer)
    return True
