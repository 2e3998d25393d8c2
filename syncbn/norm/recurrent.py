"""Batch normalization for recurrent networks, with statistics for each time step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.registry import register
from syncbn.norm.core.shared_options import Shared
from syncbn.norm.kernels.plain import statistics_dtype
from syncbn.norm.recurrent_options import RecurrentBatchNormOptions as Options
from syncbn.norm.sync import SyncBatchNorm, batch_norm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@register("recurrent", options=Options)
class RecurrentBatchNorm(SyncBatchNorm):
    """Batch normalization for recurrent networks, with statistics for each time step over all ranks' batches.

        y = (x - mean_t) / sqrt(var_t + eps) · γ + β

    Activations of the first steps differ from later ones, so each step has its own running statistics; γ and β are the
    same for all steps. In training, mean_t and var_t are those of all ranks' batches at this step, and row t of the
    buffers is updated with them; steps from `max_length` - 1 on share the last row. Evaluation uses row t or, for a
    sequence longer than those of training, the last trained row. γ starts at 0.1: with 1, the tanh after it saturates
    too often, and gradients vanish over time.

    `mask` excludes sequences that have ended from statistics and gradients. Every rank must run the same steps, forward
    and backward; a rank whose sequences have all ended runs them with an all-False mask, as `syncbn.models.recurrent`
    does. Each step has one all-reduce forward and one backward.

    Args:
        num_features: C.
        max_length: number of time steps with their own statistics, at least 1.
        gamma_init: initial γ.
        eps: added to the variance; greater than 0.
        momentum: weight of the new batch in the running statistics, in [0, 1]; None for the mean of all batches.
        affine: whether there are γ (`weight`) and β (`bias`), per channel.
        track_running_stats: whether there are `running_mean` and `running_var` (max_length, C), float32, and
            `num_batches_tracked` (max_length,); without them, evaluation uses this rank's batch.
        process_group: the ranks to synchronize over; all of them when None.
        bias: whether an affine layer has β.
        device: device of parameters and buffers.
        dtype: dtype of the parameters.
        shared: options of every layer with running statistics, see `syncbn.norm.core.shared_options.Shared`.

    Shape:
        input (N, C, *), of a floating-point dtype; output the same.
        step: time step, counted from 0.
        mask (N, *), bool: only samples where it is True count; elsewhere output and gradient are 0.

    Raises:
        ValueError: max_length below 1, a negative step; otherwise as `SyncBatchNorm`. With a mask, a single sample in
            total gives y = β instead: checking the number would make the host wait.
        TypeError: as `SyncBatchNorm`.

    Source: Cooijmans et al., Recurrent Batch Normalization, ICLR 2017, https://arxiv.org/abs/1603.09025.
    """

    gamma_init = Options.gamma_init  # used by the base's constructor, which resets the parameters

    takes_step = True

    def __init__(
        self,
        num_features: int,
        max_length: int = Options.max_length,
        gamma_init: float = Options.gamma_init,
        eps: float = Options.eps,
        momentum: float | None = Options.momentum,
        affine: bool = Options.affine,
        track_running_stats: bool = Options.track_running_stats,
        process_group: ProcessGroup | None = None,
        bias: bool = Options.bias,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        check_arguments(Options, locals())
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, process_group, bias, device, dtype, **shared
        )
        self.max_length, self.gamma_init = max_length, gamma_init
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.expand(max_length, *buffer.shape).clone()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset the statistics, γ to `gamma_init` and β to 0."""
        super().reset_parameters()
        if self.weight is not None:
            nn.init.constant_(self.weight, self.gamma_init)

    def adopt(self, old: nn.Module) -> None:
        """Start every time step from the running statistics of `old`."""
        for name, buffer in self._buffers.items():
            known = old._buffers.get(name)
            if buffer is not None and known is not None:
                buffer.copy_(known)

    def forward(self, input: Tensor, step: int = 0, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        self.check_input(input, mask)
        if mask is not None:
            mask = mask.unsqueeze(1)
            input = torch.where(mask, input, 0)
        weight, bias = self.affine_parameters(input)
        if self.training or self.running_mean is None or self.running_var is None:
            group = self.communicating_group() if self.training else None
            self._check_batch(input, group)
            output, moments = batch_norm(input, weight, bias, self.eps, mask, group)
            if self.training:
                self.track(moments, row=min(step, self.max_length - 1))
        else:
            row = self._trained_row(step)
            running = self.running_mean, self.running_var
            mean, var = (b.index_select(0, row).squeeze(0).to(statistics_dtype(input)) for b in running)
            output = compat.batch_norm(input, mean, var, weight, bias, self.eps)
        return output if mask is None else torch.where(mask, output, 0)

    def _trained_row(self, step: int) -> Tensor:
        """Row of a step in evaluation, (1,): at most the last trained one."""
        assert self.num_batches_tracked is not None
        trained = (self.num_batches_tracked > 0).sum().view(1)  # stays a tensor, so that the host doesn't wait
        return (trained - 1).clamp(min=0, max=min(step, self.max_length - 1))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, max_length={self.max_length}, gamma_init={self.gamma_init}"
