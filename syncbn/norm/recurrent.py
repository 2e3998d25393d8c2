"""Batch normalization inside recurrent networks: statistics of each time step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    """Batch normalization of a recurrent network, with statistics for each time step, over all ranks' batches.

        y = (x - mean_t) / sqrt(var_t + eps) · γ + β

    The activations of the first steps differ from the later ones', so each step has running statistics of its own; γ
    and β are the same for all. In training, mean_t and var_t are those of all ranks' batches at this step, and row t of
    the buffers moves towards them; steps from `max_length` - 1 on share the last row. Evaluation takes row t, or, for a
    sequence longer than those of training, the last row that has been trained. γ starts at 0.1: with 1, the tanh
    after it is at its flat ends too often, and gradients vanish over time.

    Sequences that have ended are left out by `mask`: they count in no statistic and get no gradient. Every rank has to
    run the same steps, forward and backward; a rank whose sequences have all ended runs them with a mask that is False
    throughout (`syncbn.models.recurrent` does so). One all-reduce a step forward and one backward.

    Args:
        num_features: C.
        max_length: number of time steps that have statistics of their own, at least 1.
        gamma_init: where γ starts.
        eps: added to the variance; greater than 0.
        momentum: weight of the new batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: whether there are γ (`weight`) and β (`bias`), per channel.
        track_running_stats: whether there are `running_mean` and `running_var` (max_length, C), float32, and
            `num_batches_tracked` (max_length,); without, evaluation takes this rank's batch.
        process_group: the ranks to synchronize over; all of them when None.
        bias: whether an affine layer has β.
        device: where parameters and buffers are made.
        dtype: of the parameters.
        shared: further options of every layer with running statistics: `syncbn.norm.core.shared_options.Shared`.

    Shape:
        input (N, C, *), of a floating-point dtype; output the same.
        step: the time step, counted from 0.
        mask (N, *), bool: only samples where it is True count; elsewhere output and gradient are 0.

    Raises:
        ValueError: max_length below 1, a negative step; otherwise as `SyncBatchNorm`. With a mask, a single sample in
            all gives y = β: the layer doesn't wait to learn how many there are.
        TypeError: as `SyncBatchNorm`.

    Source: Cooijmans et al., Recurrent Batch Normalization, ICLR 2017, https://arxiv.org/abs/1603.09025.
    """

    gamma_init = Options.gamma_init  # for the constructor of the base, which resets the parameters

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
        """Statistics as before any batch, γ at `gamma_init`, β at 0."""
        super().reset_parameters()
        if self.weight is not None:
            nn.init.constant_(self.weight, self.gamma_init)

    def adopt(self, old: nn.Module) -> None:
        """Start every time step from the running statistics of `old`, which has none of single steps."""
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
            output = F.batch_norm(input, mean, var, weight, bias, eps=self.eps)
        return output if mask is None else torch.where(mask, output, 0)

    def _trained_row(self, step: int) -> Tensor:
        """The row of a step in evaluation, (1,): no later one than training has come to."""
        assert self.num_batches_tracked is not None
        trained = (self.num_batches_tracked > 0).sum().view(1)  # a tensor, which the host doesn't wait for
        return (trained - 1).clamp(min=0, max=min(step, self.max_length - 1))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, max_length={self.max_length}, gamma_init={self.gamma_init}"
