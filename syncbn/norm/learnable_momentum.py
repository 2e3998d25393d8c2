"""Batch normalization by running statistics in training too, with a learned momentum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.moments import Moments, all_reduce, batch_moments, unbiased_var
from syncbn.norm.core.registry import register
from syncbn.norm.core.running import RunningNorm
from syncbn.norm.core.shared_options import Shared
from syncbn.norm.kernels.interface import ChannelAffine
from syncbn.norm.kernels.plain import PLAIN, statistics_dtype
from syncbn.norm.learnable_momentum_options import LearnableMomentumOptions as Options
from syncbn.norm.sync import SyncBatchNorm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@register("learnable_momentum", options=Options)
class LearnableMomentumBatchNorm(RunningNorm, SyncBatchNorm):
    """Batch normalization by the updated running statistics, with the momentum as a parameter.

    Training, with the mean and the unbiased variance over all ranks' batches, and m = sigmoid(`momentum_logit`):

        mean = (1 - m) · running_mean + m · mean_batch,  var = (1 - m) · running_var + m · var_batch
        y = (x - mean) / sqrt(var + eps) · γ + β

    and mean and var are the new running statistics. Gradients flow to m, and to x through the batch's moments with m
    times the weight of batch normalization; statistics of earlier batches are constants. A large m approaches batch
    normalization; a small one is stable with small batches. Evaluation is as in `SyncBatchNorm`: with the same running
    statistics its output equals training's. Derivatives of any order are exact across ranks.

    The parameter is a scalar, initialized so that m is `momentum`; `syncbn.training.optim.parameter_groups` gives it no
    weight decay. An optimizer created before `syncbn.convert` doesn't have it.

    Args:
        num_features: C of an input (N, C, *).
        momentum: initial m; greater than 0 and less than 1.
        eps: added to the variance; greater than 0.
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
        ValueError, TypeError: as `SyncBatchNorm`; a momentum of 0, 1 or None.
        NotImplementedError: activation checkpointing recomputes a forward pass that isn't the layer's last.

    Source: running statistics in the training normalizer: Yong et al., Momentum Batch Normalization, ECCV 2020, and Ma
        & Klabjan, Diminishing Batch Normalization, 2017, https://arxiv.org/abs/1705.08011, who set the momentum by a
        rule. Learning it by gradient descent is this package's choice.
    """

    own_state = ("momentum_logit",)
    learns_momentum = True
    evaluates_as_batch_norm = True

    def __init__(
        self,
        num_features: int,
        momentum: float = Options.momentum,
        eps: float = Options.eps,
        affine: bool = Options.affine,
        process_group: ProcessGroup | None = None,
        bias: bool = Options.bias,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        check_arguments(Options, locals())
        super().__init__(num_features, eps, momentum, affine, True, process_group, bias, device, dtype, **shared)
        self.remember(2, device)
        self.momentum_logit = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_own_state()

    def reset_own_state(self) -> None:
        """Let m be `momentum`, or the default where that was changed to None."""
        momentum = Options.momentum if self.momentum is None else self.momentum
        nn.init.constant_(self.momentum_logit, math.log(momentum / (1 - momentum)))

    @property
    def learned_momentum(self) -> Tensor:
        """m, (1,), in the dtype of the running statistics.

        While `momentum` is None, as `torch.optim.swa_utils.update_bn` sets it, the statistics become the mean of all
        batches.
        """
        assert self.running_mean is not None
        if self.momentum is None:
            if torch.is_grad_enabled():
                raise ValueError("momentum=None has no momentum to learn: set it to a number, or call under no_grad()")
            assert self.num_batches_tracked is not None
            return (self.num_batches_tracked + 1).to(self.running_mean.dtype).reciprocal().view(1)
        return self.momentum_logit.to(self.running_mean.dtype).sigmoid()

    def widened(self, input: Tensor) -> Tensor:
        return input.to(statistics_dtype(input))  # autograd differentiates the moments here, in eager mode too

    def choose_moments(self, input: Tensor, mask: Tensor | None, group: ProcessGroup | None) -> Moments:
        """Moments that the running statistics become, differentiable; running_var is their unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        batch = all_reduce(batch_moments(input, mask), group)
        before = self.as_first_seen(batch, torch.stack([self.running_mean, self.running_var])).to(batch.mean.dtype)
        momentum = self.learned_momentum.to(batch.mean.dtype)
        mean = before[0] + momentum * (batch.mean - before[0])
        var = before[1] + momentum * (unbiased_var(batch) - before[1])
        return Moments(batch.count, mean, var * (batch.count - 1).clamp(min=1))

    def normalize_batch(self, input: Tensor, moments: Moments, group: ProcessGroup | None) -> Tensor:
        dtype = statistics_dtype(input)
        mean, var = moments.mean.to(dtype), unbiased_var(moments).to(dtype)
        return PLAIN.normalize(input, ChannelAffine(mean, var, self.eps, *self.affine_parameters(input)))

    def evaluate(self, input: Tensor) -> Tensor:
        output = super().evaluate(input)
        if torch.is_grad_enabled():  # a gradient of 0, since DDP waits for one
            output = output + 0 * self.momentum_logit.to(output.dtype)
        return output

    def track(self, moments: Moments, **options: Any) -> None:
        super().track(moments, outright=True)
