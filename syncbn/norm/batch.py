"""Batch normalization of one rank: torch's layer, for any number of spatial dimensions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syncbn.norm.batch_options import BatchNormOptions as Options
from syncbn.norm.core.moments import Moments
from syncbn.norm.core.registry import register
from syncbn.norm.core.tracking import TrackingNorm
from syncbn.norm.kernels.plain import statistics_dtype


@register("batch", options=Options)
class BatchNorm(TrackingNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` that also takes (N, C), (N, C, L) and (N, C, D, H, W): moments of this rank's batch.

        y = (x - mean) / sqrt(var + eps) · γ + β

    Training normalizes by the batch's mean and biased variance, and updates running_mean and running_var with the mean
    and the unbiased variance by `momentum`. Evaluation uses the running statistics. The kernels are torch's. Unlike in
    torch's layer, running statistics are never in half precision, aren't updated by a batch that isn't finite, and are
    updated once where activation checkpointing runs a forward pass twice.

    Args:
        num_features: C of an input (N, C, *).
        eps: added to the variance; greater than 0.
        momentum: weight of the new batch in the running statistics, in [0, 1]; None for the mean of all batches.
        affine: whether there are γ (`weight`) and β (`bias`), (C,).
        track_running_stats: whether there are running statistics; without them, evaluation uses the batch's moments.
        bias: whether an affine layer has β.
        device: device of parameters and buffers.
        dtype: dtype of the parameters.

    Raises:
        ValueError: an argument out of range; a different number of channels or dimensions; a training batch with a
            single value a channel.
        TypeError: an input that isn't floating point.

    Source: Ioffe & Szegedy, Batch Normalization, ICML 2015, https://arxiv.org/abs/1502.03167.
    """

    normalizes_by_batch = True
    is_per_channel = True
    evaluates_as_batch_norm = True

    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input, None)
        if not self.training and self.running_mean is not None:
            return self.evaluate(input)
        dtype = statistics_dtype(input)
        # With a momentum of 1, torch's kernel writes the batch's own statistics to these buffers.
        mean, var = (torch.zeros(self.num_features, dtype=dtype, device=input.device) for _ in range(2))
        affine = self.affine_parameters(input)
        output = F.batch_norm(input, mean, var, *affine, training=True, momentum=1.0, eps=self.eps)
        if self.training:
            count = torch.full((), input.numel() // self.num_features, dtype=dtype, device=input.device)
            self.track(Moments(count, mean, var * (count - 1)))
        return output
