"""Ghost batch normalization: a large batch normalized as several small ones."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from syncbn.norm.core import compat
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.moments import Moments
from syncbn.norm.core.registry import register
from syncbn.norm.core.shared_options import Shared
from syncbn.norm.core.tracking import TrackingNorm
from syncbn.norm.ghost_options import GhostBatchNormOptions as Options
from syncbn.norm.kernels.plain import statistics_dtype
from syncbn.norm.sync import batch_norm


@register("ghost", options=Options)
class GhostBatchNorm(TrackingNorm):
    """Batch normalization over ghost batches of `ghost_batch_size` consecutive samples, each by its own moments.

        y = (x - mean_g) / sqrt(var_g + eps) · γ + β,  for x in the ghost batch g

    Training splits this rank's batch into ghost batches, the last of which may be smaller, and updates running_mean and
    running_var by `momentum` once for each of them in turn, as batch normalization called in a loop would. This keeps
    the noise of small batches, which helps large-batch training to generalize. Evaluation uses the running statistics.
    There is no communication: synchronized ghost batches would be larger ones. As with `batch`, each rank has its own
    running statistics.

    Args:
        num_features: C of an input (N, C, *).
        ghost_batch_size: samples in a ghost batch; at least 1.
        eps: added to the variance; greater than 0.
        momentum: weight of a ghost batch in the running statistics, in [0, 1]; None for the average of all of them.
        affine: whether there are γ (`weight`) and β (`bias`), (C,).
        track_running_stats: whether there are running statistics; without them, evaluation is like training.
        bias: whether an affine layer has β.
        device: device of parameters and buffers.
        dtype: dtype of the parameters.
        shared: options of every layer with running statistics, see `syncbn.norm.core.shared_options.Shared`.

    Shape:
        input (N, C, *), of a floating-point dtype, contiguous or channels last; output the same in all three.

    Raises:
        ValueError: an argument out of range; a different number of channels or dimensions; a ghost batch of a single
            value a channel.
        TypeError: an input that isn't floating point; a ghost_batch_size that isn't an int.

    Source:
        Hoffer et al., Train longer, generalize better, NeurIPS 2017, https://arxiv.org/abs/1705.08741, algorithm 1.
    """

    is_per_channel = True
    evaluates_as_batch_norm = True

    def __init__(
        self,
        num_features: int,
        ghost_batch_size: int = Options.ghost_batch_size,
        eps: float = Options.eps,
        momentum: float | None = Options.momentum,
        affine: bool = Options.affine,
        track_running_stats: bool = Options.track_running_stats,
        bias: bool = Options.bias,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        check_arguments(Options, locals())
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias, device, dtype, **shared)
        self.ghost_batch_size = ghost_batch_size

    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input, None)
        if not self.training and self.running_mean is not None:
            return self.evaluate(input)
        if compat.is_exporting():
            return self._by_index(input)
        affine, outputs = self.affine_parameters(input), []
        ghosts = input.split(self.ghost_batch_size)
        for ghost in ghosts:
            self._check_ghost(ghost, input)
        for ghost in ghosts:
            output, moments = batch_norm(ghost, *affine, self.eps, mask=None, group=None)
            outputs.append(output)
            if self.training:
                self.track(moments)
        return torch.cat(outputs)

    def _by_index(self, input: Tensor) -> Tensor:
        """The same without a loop, whose length a graph would fix: a sample looks at the first of its ghost batch."""
        x = input.to(statistics_dtype(input))
        x = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
        samples = torch.arange(x.shape[0], device=x.device)
        first = samples - samples % self.ghost_batch_size
        per_sample = x.detach().mean(2)
        near, none = per_sample[first], torch.zeros_like(per_sample)  # about a point near the data, nothing cancels
        x = x - near.unsqueeze(2)
        # A row for each sample, of which those of first ones are used.
        count = none.index_add(0, first, torch.ones_like(x).sum(2))
        offset = none.index_add(0, first, x.sum(2)) / count.clamp(min=1)
        x = x - offset[first].unsqueeze(2)
        m2 = none.index_add(0, first, x.square().sum(2))
        output = x * (m2 / count.clamp(min=1) + self.eps).rsqrt()[first].unsqueeze(2)
        weight, bias = self.affine_parameters(input)
        if weight is not None:
            output = output * weight.view(-1, 1)
        if bias is not None:
            output = output + bias.view(-1, 1)
        if self.training:
            self.track_each(Moments(count[:, 0], near + offset, m2))
        return output.to(input.dtype).view(input.shape)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_batch_size={self.ghost_batch_size}"

    def _check_ghost(self, ghost: Tensor, input: Tensor) -> None:
        if ghost.numel() == self.num_features:
            raise ValueError(
                f"a ghost batch of one sample a channel has no variance, got shape {tuple(input.shape)} in ghost "
                f"batches of {self.ghost_batch_size}; use another ghost_batch_size, or leave out the incomplete batch"
            )
