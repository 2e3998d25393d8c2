"""Batch renormalization: batch moments, corrected towards the running statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor, nn

from syncbn.norm.batch_renorm_options import BatchRenormOptions as Options
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.moments import Moments, biased_var
from syncbn.norm.core.registry import register
from syncbn.norm.core.running import RunningNorm
from syncbn.norm.core.shared_options import Shared
from syncbn.norm.kernels.plain import statistics_dtype
from syncbn.norm.sync import SyncBatchNorm, normalize

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@register("batch_renorm", options=Options)
class BatchRenorm(RunningNorm, SyncBatchNorm):
    r"""Batch renormalization: training normalizes as evaluation does, within limits, with the batch's gradients.

    Training, with the moments over all ranks' batches, σ_B = sqrt(var + eps) and σ = sqrt(running_var + eps):

        r = clip(σ_B / σ, 1 / r_max_t, r_max_t),  d = clip((mean - running_mean) / σ, -d_max_t, d_max_t)
        y = ((x - mean) / σ_B · r + d) · γ + β

    where r and d are constants to autograd, and the running statistics are those before this batch. Where nothing is
    clipped, y equals evaluation's output, (x - running_mean) / σ · γ + β; with r = 1 and d = 0 the layer is
    `SyncBatchNorm`. The limits grow linearly with the number of optimizer steps t:

        r_max_t: 1 up to `start_step`, `r_max` from `r_max_step` on;  d_max_t: 0 up to `start_step`, `d_max` from
        `d_max_step` on

    An optimizer step is detected by a change of β (of γ, without β) since the last training forward. So the forward
    passes of gradient accumulation, and several calls in a step, count as one step; a step that doesn't change β,
    because the learning rate is 0, doesn't count. Where neither can be trained, forward passes count. The count is
    `num_steps` in `state_dict`: the steps plus 1, once there was a forward pass.

    The running statistics average mean and unbiased variance by `momentum`, as in every norm here; the paper averages
    σ_B instead of the variance. Evaluation and communication are as in `SyncBatchNorm`.

    Args:
        num_features: C of an input (N, C, *).
        r_max: final limit of r, at least 1.
        d_max: final limit of d, at least 0.
        start_step: optimizer steps of plain batch normalization.
        r_max_step: the step from which the limit of r is `r_max`; at least `start_step`.
        d_max_step: the step from which the limit of d is `d_max`; at least `start_step`.
        eps: added to the variance; greater than 0.
        momentum: weight of the new batch in the running statistics, in [0, 1]; None for the mean of all batches.
        affine: whether there are γ (`weight`) and β (`bias`).
        process_group: the ranks to synchronize over; all of them when None.
        bias: whether an affine layer has β.
        device: device of parameters and buffers.
        dtype: dtype of the parameters.
        shared: options of every layer with running statistics, see `syncbn.norm.core.shared_options.Shared`.

    Shape:
        input (N, C, *), of a floating-point dtype; output the same.
        mask (N, *), bool: only samples where it is True count; elsewhere output and gradient are 0.

    Raises:
        ValueError, TypeError: as `SyncBatchNorm`; a limit or a step out of range.
        NotImplementedError: activation checkpointing recomputes a forward pass that isn't the layer's last.

    Source: Ioffe, Batch Renormalization, NeurIPS 2017, https://arxiv.org/abs/1702.03275; the defaults are those of its
        section 4, for some 100 thousand steps.
    """

    own_state = ("num_steps", "counted")
    evaluates_as_batch_norm = True
    num_steps: Tensor
    counted: Tensor

    def __init__(
        self,
        num_features: int,
        r_max: float = Options.r_max,
        d_max: float = Options.d_max,
        start_step: int = Options.start_step,
        r_max_step: int = Options.r_max_step,
        d_max_step: int = Options.d_max_step,
        eps: float = Options.eps,
        momentum: float | None = Options.momentum,
        affine: bool = Options.affine,
        process_group: ProcessGroup | None = None,
        bias: bool = Options.bias,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        check_arguments(Options, locals())
        if start_step > min(r_max_step, d_max_step):
            raise ValueError(
                "start_step must come before r_max_step and d_max_step, got "
                f"{start_step}, {r_max_step} and {d_max_step}"
            )
        super().__init__(num_features, eps, momentum, affine, True, process_group, bias, device, dtype, **shared)
        self.remember(2, device)
        self.r_max, self.d_max = r_max, d_max
        self.start_step, self.r_max_step, self.d_max_step = start_step, r_max_step, d_max_step
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long, device=device))
        self.register_buffer("counted", torch.full((num_features,), torch.nan, device=device))

    def reset_own_state(self) -> None:
        """Start the schedule anew."""
        nn.init.zeros_(self.num_steps)
        nn.init.constant_(self.counted, torch.nan)

    def normalize_batch(self, input: Tensor, moments: Moments, group: ProcessGroup | None) -> Tensor:
        if not self.training:
            return super().normalize_batch(input, moments, group)
        r, d = self.as_first_seen(moments, self._correction(moments)).to(statistics_dtype(input))
        weight, bias = self.affine_parameters(input)
        if weight is not None:
            r, d = r * weight, d * weight
        return normalize(input, r, d if bias is None else d + bias, moments, self.eps, group)

    def limits(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """r_max_t and d_max_t after `steps` optimizer steps, 0-d."""
        r, d = self._progress(steps, self.r_max_step), self._progress(steps, self.d_max_step)
        return 1 + (self.r_max - 1) * r, self.d_max * d

    def extra_repr(self) -> str:
        limits = f"r_max={self.r_max}, d_max={self.d_max}, start_step={self.start_step}"
        return f"{super().extra_repr()}, {limits}, r_max_step={self.r_max_step}, d_max_step={self.d_max_step}"

    def _progress(self, steps: Tensor, end: int) -> Tensor:
        ramp = (steps - self.start_step).to(self.counted.dtype) / max(end - self.start_step, 1)
        return torch.where(steps >= end, 1, ramp.clamp(0, 1))

    def _correction(self, moments: Moments) -> Tensor:
        """r and d, (2, C)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        r_max, d_max = self.limits(self._steps())
        std = (self.running_var + self.eps).sqrt()
        r = (biased_var(moments).detach() + self.eps).sqrt() / std
        d = (moments.mean.detach() - self.running_mean) / std
        return torch.stack([r.clamp(1 / r_max, r_max), d.clamp(-d_max, d_max)])

    @torch.no_grad()
    def _steps(self) -> Tensor:
        """Optimizer steps before this forward pass, 0-d."""
        assert self.num_batches_tracked is not None
        watched = self.weight if self.bias is None else self.bias
        if watched is None or not watched.requires_grad:
            return self.num_batches_tracked
        current = watched.to(self.counted.dtype)
        self.num_steps.add_((current != self.counted).any())  # a recomputed pass sees no change
        self.counted.copy_(current)
        return self.num_steps - 1
