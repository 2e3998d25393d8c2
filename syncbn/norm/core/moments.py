"""Moments of a batch and of all ranks' batches."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from syncbn.norm.core import channels, compat
from syncbn.norm.core.exchange import all_sum, communicating_group
from syncbn.norm.core.kernels import kernels_for
from syncbn.norm.kernels.plain import PLAIN, moments_grad


class Moments(NamedTuple):
    """Count, mean and M2 of a batch, per channel, in float64.

    Attributes:
        count: number of samples in a channel, 0-d.
        mean: (C,).
        m2: Σ(x - mean)², (C,).
    """

    count: Tensor  # type: ignore[assignment]  # shadows a method of tuple
    mean: Tensor
    m2: Tensor


# Functions and not properties: the compiler of torch 2.8 can't trace a property of a tuple.
def biased_var(moments: Moments) -> Tensor:
    """M2 / n; 0 if there are no samples."""
    return moments.m2 / moments.count.clamp(min=1)


def unbiased_var(moments: Moments) -> Tensor:
    """M2 / (n - 1); 0 for a single sample."""
    return moments.m2 / (moments.count - 1).clamp(min=1)


def batch_moments(x: Tensor, mask: Tensor | None = None) -> Moments:
    """Moments of this rank's (N, C, *). Differentiable where gradients are recorded.

    Args:
        x: input, finite even where it is masked (fill masked values first).
        mask: (N, 1, *) bool; True = counts.
    """
    differentiable = torch.is_grad_enabled() and x.requires_grad
    if mask is not None or differentiable or compat.is_tracing():
        mean, m2, count = PLAIN.moments(x, mask)
    else:
        mean, m2, count = kernels_for(x).moments(x)
    wide = _widest_dtype(x)
    n = count.to(wide) if isinstance(count, Tensor) else torch.full((), count, dtype=wide, device=x.device)
    return Moments(n, mean.to(wide), m2.to(wide))


def merge(count: Tensor, mean: Tensor, var: Tensor) -> Moments:
    """Merge the moments of several parts by the law of total variance. Differentiable.

    Args:
        count: count of each part, a sample or a batch, (N,); the moments of a part with count 0 may be anything finite.
        mean: mean of each part, (N, C).
        var: biased variance of each part, (N, C).
    """
    wide = _widest_dtype(mean)
    count, mean, var = count.to(wide).unsqueeze(1), mean.to(wide), var.to(wide)
    total = count.sum()
    merged = (count * mean).sum(0) / total.clamp(min=1)
    return Moments(total, merged, (count * (var + (mean - merged).square())).sum(0))


def pool(a: Moments, b: Moments) -> Moments:
    """Merge the moments of two batches."""
    count = a.count + b.count
    delta = b.mean - a.mean
    share = b.count / count.clamp(min=1)
    return Moments(count, a.mean + delta * share, a.m2 + b.m2 + delta.square() * (a.count * share))


def all_reduce(local: Moments, group: ProcessGroup | None) -> Moments:
    """Merge the moments of all ranks' batches, by one all-reduce of 2C + 1 sums [n·mean, M2 + n·mean², n].

    Sums are linear, so unequal and empty ranks need no special case, and traffic doesn't grow with the world size. In
    float64, E[x²] - E[x]² loses only a relative 1e-16.
    """
    if group is None:
        return local
    if channels.serve(*local):
        return Moments(*channels.unpack(all_sum(channels.pack(*local), group)))
    total = local.count * local.mean
    sums = all_sum(torch.cat([total, local.m2 + total * local.mean, local.count.view(1)]), group)
    total, squares, count = sums.split([len(total), len(total), 1])
    mean = total / count.clamp(min=1)
    return Moments(count.view(()), mean, (squares - total * mean).clamp(min=0))


def all_covariance(
    centred: Tensor, near: Tensor, count: Tensor, group: ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased covariance of all ranks' samples, by one all-reduce of Σx, Σxxᵀ and n. Differentiable.

    Args:
        centred: x - near of this rank's n samples, (groups, n, D); masked samples are 0.
        near: a constant point near the data, about which the sums are taken, (groups, D).
        count: number of samples that count, 0-d.
        group: the ranks; None for only this one.

    Returns:
        count 0-d, mean (groups, D) and covariance (groups, D, D), all in float64.
    """
    wide = _widest_dtype(near)
    count, near = count.to(wide), near.to(wide)
    local = centred.sum(1).to(wide)
    mixed = near.unsqueeze(2) * local.unsqueeze(1)
    products = (centred.mT @ centred).to(wide) + mixed + mixed.mT + count * near.unsqueeze(2) * near.unsqueeze(1)
    total = local + count * near
    sums = all_sum(torch.cat([total.flatten(), products.flatten(), count.view(1)]), group)
    totals, squares, count = sums.split([total.numel(), products.numel(), 1])
    n = count.clamp(min=1)
    mean = totals.view_as(total) / n
    return count.view(()), mean, squares.view_as(products) / n - mean.unsqueeze(2) * mean.unsqueeze(1)


def all_means(a: Tensor, b: Tensor, count: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Means over the `count` samples of all ranks from two sums (C) over this rank's samples, by one all-reduce."""
    sums = all_sum(torch.cat([a, b]).to(count.dtype), group)
    if a.dtype is torch.float32 and channels.serve(sums, count):
        means = channels.means(sums, count)
        return means[: len(a)], means[len(a) :]
    mean_a, mean_b = (sums / count.clamp(min=1)).to(a.dtype).chunk(2)
    return mean_a, mean_b


def attach_moments(
    x: Tensor, mean: Tensor, var: Tensor, count: Tensor, group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Make saved moments of all ranks' samples functions of `x`, this rank's samples, again.

    Autograd treats saved statistics as constants, so a backward pass that uses them would have a correct first
    derivative and a silently wrong second one.
    """
    return _AttachMoments.apply(x, mean, var, count, group)


class _AttachMoments(torch.autograd.Function):
    """Saves `mean` as an output, so that higher derivatives pass through this function too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, var: Tensor, count: Tensor, group: ProcessGroup | None
    ) -> tuple[Tensor, Tensor]:
        mean, var = mean.clone(), var.clone()
        ctx.save_for_backward(x, mean, count)
        ctx.group = group
        return mean, var

    @staticmethod
    def backward(ctx: Any, dmean: Tensor, dvar: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, count = ctx.saved_tensors
        dmean, dvar = all_means(dmean, dvar, count, ctx.group)
        return moments_grad(x, mean, dmean, dvar), None, None, None, None


def mean_over_ranks(values: Tensor, process_group: ProcessGroup | None = None) -> Tensor:
    """Loss whose gradient, averaged over ranks by DDP, is that of the mean over all ranks' samples.

    It is `values.sum() · world_size / N`, with N the number of values on all ranks. The mean of each rank's own values,
    as by `reduction="mean"`, would give samples of small batches more weight than those of large ones. There is one
    all-reduce of a count. An empty rank contributes 0; without a process group it is the plain mean.

    Args:
        values: loss of each sample of this rank, any shape.
        process_group: the group that averages the gradients; the default group when None.

    Returns:
        0-d, in the dtype of `values`. Its average over ranks is the mean over all samples.

    Raises:
        TypeError: other values than a tensor of floating-point or complex numbers.
    """
    if not isinstance(values, Tensor) or not (values.is_floating_point() or values.is_complex()):
        got = f"a tensor of {values.dtype}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise TypeError(f'values must be a tensor with the loss of each sample, such as by reduction="none", got {got}')
    group = communicating_group(process_group)
    count = torch.full((), values.numel(), dtype=_widest_dtype(values), device=values.device)
    # The message counts the ranks, too: `group.size()` would be a constant of a compiled graph.
    total, world_size = all_sum(torch.stack([count, torch.ones_like(count)]), group)
    weight = world_size / total.clamp(min=1)
    return values.sum() * weight.to(values.dtype)


def _widest_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64
