"""Switchable normalization: a learned mix of batch, layer and instance normalization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.moments import Moments, all_reduce, biased_var, merge
from syncbn.norm.core.registry import register
from syncbn.norm.core.shared_options import Shared
from syncbn.norm.core.tracking import as_constants
from syncbn.norm.kernels.plain import statistics_dtype
from syncbn.norm.switchable_options import SwitchableNormOptions as Options
from syncbn.norm.sync import SyncBatchNorm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@register("switchable", options=Options)
class SwitchableNorm(SyncBatchNorm):
    """Switchable normalization of (N, C, *): a learned mix of instance, layer and batch moments.

        mean = Σ p_k · mean_k,  var = Σ q_k · var_k,  y = (x - mean) / sqrt(var + eps) · γ + β

    with k over the moments of a sample's channel (instance), of a whole sample (layer) and of a channel in all ranks'
    batches (batch), and p = softmax(`mean_logits`), q = softmax(`var_logits`), which start equal. Layer and batch
    moments are computed from the instance moments by the law of total variance, so x is read only once. With a single
    position, as in (N, C), there is no instance variance: p and q cover only the other two.

    Training takes the batch moments over all ranks, by one all-reduce of 2C + 1 float64 numbers and one in the backward
    pass, and updates `running_mean` and `running_var` as `SyncBatchNorm` does. Evaluation uses the running statistics
    instead; instance and layer moments are those of the input in both.

    Args:
        num_features: C.
        eps: added to the variance; greater than 0.
        momentum: weight of the new batch in the running statistics, in [0, 1]; None for the mean of all batches.
        affine: whether there are γ (`weight`) and β (`bias`), per channel.
        track_running_stats: whether there are running statistics; without them, evaluation uses this rank's batch.
        process_group: the ranks to synchronize over; all of them when None.
        bias: whether an affine layer has β.
        device: device of parameters and buffers.
        dtype: dtype of the parameters.
        shared: options of every layer with running statistics, see `syncbn.norm.core.shared_options.Shared`.

    Shape:
        input (N, C, *), of a floating-point dtype; output the same. Moments are float32, or float64 for float64.
        mask (N, *), bool: only positions where it is True count; elsewhere output and gradient are 0.

    Raises:
        ValueError, TypeError: as `SyncBatchNorm`.

    Source: Luo et al., Differentiable Learning-to-Normalize via Switchable Normalization, ICLR 2019,
        https://arxiv.org/abs/1806.10779.
    """

    def __init__(
        self,
        num_features: int,
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
        self.mean_logits = nn.Parameter(torch.zeros(3, device=device, dtype=dtype))
        self.var_logits = nn.Parameter(torch.zeros(3, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Reset γ to 1, β to 0, the running statistics, and the shares to equal ones."""
        super().reset_parameters()
        for name in ("mean_logits", "var_logits"):
            if name in self._parameters:  # the base's constructor comes before them
                nn.init.zeros_(getattr(self, name))

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        self.check_input(input, mask)
        if mask is not None:
            input = torch.where(mask.unsqueeze(1), input, 0)
        x = input.to(statistics_dtype(input))
        count, instance_mean, instance_var = _instance_moments(x, mask)
        layer_mean = instance_mean.mean(dim=1, keepdim=True)
        layer_var = (instance_var + (instance_mean - layer_mean).square()).mean(dim=1, keepdim=True)
        batch_mean, batch_var = self._batch_moments(input, merge(count, instance_mean, instance_var))

        single_position = input.shape[2:].numel() == 1
        p, q = (shares(logits, single_position).to(x.dtype) for logits in (self.mean_logits, self.var_logits))
        mean = p[0] * instance_mean + p[1] * layer_mean + p[2] * batch_mean
        var = q[0] * instance_var + q[1] * layer_var + q[2] * batch_var

        weight, bias = self.affine_parameters(input)
        scale = torch.rsqrt(var + self.eps) if weight is None else torch.rsqrt(var + self.eps) * weight
        positions = [1] * (x.dim() - 2)
        output = (x - mean.view(*mean.shape, *positions)) * scale.view(*scale.shape, *positions)
        if bias is not None:
            output = output + bias.view(-1, *positions)
        output = output.to(input.dtype)
        return output if mask is None else torch.where(mask.unsqueeze(1), output, 0)

    def _batch_moments(self, input: Tensor, local: Moments) -> tuple[Tensor, Tensor]:
        """Mean and variance of all ranks' batches in training, running statistics in evaluation."""
        dtype = statistics_dtype(input)
        if not self.training and self.running_mean is not None and self.running_var is not None:
            mean, var = as_constants(input, self.running_mean, self.running_var)
            return mean, var
        group = self.communicating_group() if self.training else None
        self._check_batch(input, group)
        moments = all_reduce(local, group)
        if self.training:
            self.track(moments)
        return moments.mean.to(dtype), biased_var(moments).to(dtype)


def shares(logits: Tensor, single_position: bool = False) -> Tensor:
    """Weights (3,) of the instance, layer and batch moments, with sum 1; the first is 0 for a single position."""
    if single_position:
        return F.pad(logits[1:].softmax(0), (1, 0))
    return logits.softmax(0)


def _instance_moments(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Number of positions of each sample (N,), and mean and biased variance over them (N, C)."""
    x = x.unsqueeze(-1) if x.dim() == 2 else x
    positions = list(range(2, x.dim()))
    if mask is None:
        count = torch.ones_like(x[:, :1]).sum(positions)  # not the number itself, which `torch.jit.trace` would fix
    else:
        mask = mask.view(mask.shape[0], 1, *x.shape[2:])
        count = mask.sum(positions)
    mean = x.sum(positions) / count.clamp(min=1)
    centred = x - mean.view(*mean.shape, *[1] * len(positions))
    if mask is not None:
        centred = torch.where(mask, centred, 0)
    return count[:, 0], mean, centred.square().sum(positions) / count.clamp(min=1)
