"""Moments of earlier iterations as functions of the weights of the layer before, merged at the current weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from syncbn.norm.core.exchange import PendingSum
from syncbn.norm.core.kernels import kernels_for
from syncbn.norm.core.linear_maps import patch_products, patch_sums
from syncbn.norm.core.moments import Moments, merge
from syncbn.norm.kernels.plain import statistics_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Slot:
    """Moments of one iteration over all ranks, as functions of the filters θ of y_c = <θ_c, p> + b_c.

    The mean is linear in θ and b, the variance a quadratic form in θ, v(θ) = <S, θ>/n with S = Σ(y - mean)·p. So
    `carry` needs no copy of that iteration's θ and b.
    """

    def __init__(self, moments: Moments, products: Tensor, patches: Tensor, group: ProcessGroup | None) -> None:
        """Start the sum over ranks of `products`, this rank's S (C_out, D), and `patches`, its Σp (groups, D)."""
        self.moments = moments
        self.pending = PendingSum([products, patches], group)

    def tensors(self) -> list[Tensor]:
        """Tensors of a slot, for saving or moving."""
        return [*self.moments, *self.pending.wait()]

    @classmethod
    def of_tensors(cls, tensors: Sequence[Tensor]) -> Slot:
        """Build a slot from `tensors`."""
        *moments, products, patches = tensors
        return cls(Moments(*moments), products, patches, group=None)


def carry(slots: Sequence[Slot], theta: Tensor, bias: Tensor | None) -> Moments:
    """Merge the moments of several iterations at the current filters `theta` (C_out, D) and bias.

    The mean is exactly <Σp, θ>/n + b; to first order, E[y²] exceeds its square by
    2·<S, θ>/n - v - (change of the mean)². An iteration with non-finite values doesn't count.
    """
    counts, means, m2s = (torch.stack(parts) for parts in zip(*(slot.moments for slot in slots), strict=True))
    products, patches = zip(*(slot.pending.wait() for slot in slots), strict=True)
    parts = [part.to(theta.dtype) for part in (*products, *patches)]
    at_products, at_patches = kernels_for(theta).row_dots(parts, theta).chunk(2)

    n = counts.clamp(min=1).unsqueeze(1)
    mean = at_patches / n if bias is None else at_patches / n + bias
    var = ((2 * at_products - m2s) / n - (mean - means).square()).clamp(min=0)
    valid = (mean + var).isfinite().all(1)
    valid_mean, valid_var = (torch.where(valid.unsqueeze(1), t, 0) for t in (mean, var))
    return merge(torch.where(valid, counts, 0), valid_mean, valid_var)


def slot_of(feeder: nn.Module, input: Tensor, output: Tensor, current: Moments, group: ProcessGroup | None) -> Slot:
    """The slot of an iteration.

    Args:
        feeder: the convolution or linear layer before the norm.
        input: of `feeder`, on this rank.
        output: of `feeder`, on this rank.
        current: moments of the outputs of all ranks.
        group: the ranks; none when None.
    """
    dtype = statistics_dtype(output)
    x, y = input.detach().to(dtype), output.detach().to(dtype)
    centred = y - current.mean.to(dtype).view(-1, *[1] * (y.dim() - 2))
    return Slot(current, patch_products(feeder, x, centred), patch_sums(feeder, x, y.shape), group)
