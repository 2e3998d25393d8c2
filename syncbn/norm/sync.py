"""Synchronized batch normalization: the same result as in one process, for any split of the batch over ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from syncbn.norm.core import channels, compat
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.exchange import OwnGroup
from syncbn.norm.core.kernels import kernels_for
from syncbn.norm.core.moments import Moments, all_means, all_reduce, attach_moments, batch_moments, biased_var
from syncbn.norm.core.registry import register
from syncbn.norm.core.shared_options import Memory, Shared
from syncbn.norm.core.tracking import TrackingNorm
from syncbn.norm.fusion.deferred import Deferred
from syncbn.norm.fusion.fused import Normalization, ReverseMode, away_from_zero, check_memory, check_scale
from syncbn.norm.fusion.order import NormPlace
from syncbn.norm.kernels.interface import ChannelAffine, Kernels
from syncbn.norm.kernels.plain import PLAIN, statistics_dtype
from syncbn.norm.sync_options import SyncBatchNormOptions as Options

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mask: Tensor | None, group: ProcessGroup | None
) -> tuple[Tensor, Moments]:
    """Normalize by the moments of all ranks' samples; returns y and the moments."""
    wide = widened(x)
    moments = group_moments(wide, mask, group)
    return normalize(wide, weight, bias, moments, eps, group).to(x.dtype), moments


def widened(x: Tensor) -> Tensor:
    """`x` in the dtype of the statistics under a trace, for both the moments and the output.

    Autograd then sums their gradients before rounding to half precision. They cancel if the gradient of y has a mean.
    """
    return x.to(statistics_dtype(x)) if compat.is_tracing() else x


def group_moments(x: Tensor, mask: Tensor | None, group: ProcessGroup | None) -> Moments:
    """Moments of all ranks' samples. Differentiable only under a trace; in eager mode `normalize` has the gradient."""
    if compat.is_tracing():
        return all_reduce(batch_moments(x, mask), group)
    with torch.no_grad():
        return all_reduce(batch_moments(x, mask), group)


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, moments: Moments, eps: float, group: ProcessGroup | None
) -> Tensor:
    """Normalize `x` by moments that include all ranks' `x`.

    The `moments.count` samples may include others, which are constants: gradients flow only through those of `x`.
    """
    mean, var = _as_statistics(moments, x)
    if compat.is_tracing():
        return PLAIN.normalize(x, ChannelAffine(mean, var, eps, weight, bias))
    return _Normalize.apply(x, weight, bias, mean, var, moments.count, eps, group)


class _Normalize(ReverseMode):
    """y = (x - mean) / sqrt(var + eps) · weight + bias, where mean and var are functions of all ranks' x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
        group: ProcessGroup | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps, ctx.group = eps, group
        return kernels_for(x).normalize(x, ChannelAffine(mean, var, eps, weight, bias))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: this computation will be differentiated
            kernels: Kernels = PLAIN
            mean, var = attach_moments(x, mean, var, count, ctx.group)
        else:
            kernels = kernels_for(x, dy)
        affine = ChannelAffine(mean, var, ctx.eps, weight)
        sum_dy, sum_dy_xhat = kernels.reduce_grad(dy, x, affine)
        dx = None
        if ctx.needs_input_grad[0]:
            mean_dy, mean_dy_xhat = all_means(sum_dy, sum_dy_xhat, count, ctx.group)
            dx = kernels.input_grad(dy, x, affine, mean_dy, mean_dy_xhat)
        # γ and β get this rank's share: DDP averages it with the others'.
        dweight = sum_dy_xhat if ctx.needs_input_grad[1] else None
        dbias = sum_dy if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, None, None, None, None, None


def _as_statistics(moments: Moments, x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = statistics_dtype(x)
    if dtype is torch.float32 and channels.serve(*moments):
        return channels.statistics(*moments)
    return moments.mean.to(dtype), biased_var(moments).to(dtype)


@register("sync", options=Options)
class SyncBatchNorm(TrackingNorm):
    r"""Batch normalization by the moments over all ranks' batches: exactly what one process would compute.

    Training, with n samples per channel over all ranks of the group:

        mean = Σx / n,  var = Σ(x - mean)² / n,  y = (x - mean) / sqrt(var + eps) · γ + β

    and running_mean, running_var average mean and the unbiased variance var · n / (n - 1) by `momentum`. There is one
    all-reduce of 2C + 1 float64 numbers forward and one of 2C backward for any world size; ranks may hold different
    numbers of samples, or none. Evaluation normalizes by the running statistics (by this rank's batch when they aren't
    tracked) and doesn't communicate. Without a process group, or alone in it, the layer is
    `torch.nn.BatchNorm1d/2d/3d`, and it has the same `state_dict` keys.

    The gradients of γ and β are this rank's share of the sum, as DDP expects. Losses of unequal batches must be
    weighted so that their average over ranks is the mean over all samples: see `syncbn.mean_over_ranks`. Derivatives of
    any order are exact across ranks, in eager mode; under `torch.compile` torch allows the first only.

    When the sums over ranks aren't finite, or there are no samples, no rank updates its running statistics. A forward
    pass recomputed by activation checkpointing doesn't update them again (nor does any forward pass started inside a
    backward hook). Of the `torch.func` transforms, training supports grad, vjp and jacrev, without running statistics.

    With `fuse_activation`, a training forward pass defers its output until it is used: a ReLU or LeakyReLU of it, or of
    its sum with a shortcut, becomes one function with the normalization, forward and backward. Any other use gets y.
    `memory` is what the function saves for its gradient:

    - "keep": x and the activation's output, as separate layers with an in-place ReLU do;
    - "recompute": only x, where there is no shortcut; a following convolution or pooling recomputes its input from x
      (exactly the same numbers; one more pass over memory);
    - "invert": the activation's output and the shortcut; x̂ is recomputed from them, so the activation must be a
      LeakyReLU, and |γ| < 1e-3 is replaced by ±1e-3. Rounding grows by |y / γ| in the gradient of γ; there are no
      second derivatives.

    Args:
        num_features: C of an input (N, C) or (N, C, *spatial).
        eps: added to the variance; greater than 0.
        momentum: weight of the new batch in the running statistics, in [0, 1]; None for the mean of all batches.
        affine: whether there are γ (`weight`) and β (`bias`), float parameters (C,).
        track_running_stats: whether there are `running_mean` and `running_var`, float32 (C,) buffers, kept out of half
            precision by `.half()` and by loading; float64 after `.double()`.
        process_group: the ranks to synchronize over, including this one; all of them when None. Copies share it.
            Pickles omit it, and a loaded layer refuses to train in a process group until `process_group` is set.
        bias: whether an affine layer has β.
        device: device of parameters and buffers.
        dtype: dtype of the parameters.
        shared: options of every layer with running statistics, see `syncbn.norm.core.shared_options.Shared`.
        fuse_activation: whether to compute the following activation together with the normalization. Disabled while
            hooks see its output, and under `torch.compile`, which fuses by itself.
        memory: "keep", "recompute" or "invert"; the last two need `fuse_activation`.
        overlap: whether the weight gradients of the convolutions and linear layers after this one are computed while
            its backward message is under way; the same gradients, bit by bit. The layers are found by
            `syncbn.convert`, the package's models and `syncbn.norm.surgery.overlap.overlap_messages(model)`; else it
            has no effect.

    Shape:
        input (N, C, *), of a floating-point dtype, contiguous or channels last; output the same in all three.
        mask (N, *), bool: only samples where it is True count, in statistics and gradients. Elsewhere the output is 0,
            and the input, which may be NaN, gets a gradient of 0.

    Raises:
        ValueError: an argument out of range; a different number of channels or dimensions; a mask of the wrong shape; a
            training batch with a single sample per channel on the only rank (on several ranks, a single sample in total
            gives y = β: checking the total would make the host wait); a `process_group` without this rank; a ReLU after
            `memory="invert"`.
        TypeError: an input that isn't floating point, a mask that isn't bool, a `process_group` that isn't one.

    Source:
        Ioffe & Szegedy, Batch Normalization, ICML 2015, https://arxiv.org/abs/1502.03167; across devices: Peng et al.,
        MegDet, CVPR 2018, https://arxiv.org/abs/1711.07240; "invert": Rota Bulò et al., In-Place Activated BatchNorm,
        CVPR 2018, https://arxiv.org/abs/1712.02616.
    """

    normalizes_by_batch = True
    is_per_channel = True
    evaluates_as_batch_norm = True
    synchronizes: bool = True
    overlap: bool = Options.overlap
    place: NormPlace | None = None  # in the order of the model's layers

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
        fuse_activation: bool = Options.fuse_activation,
        memory: Memory = Options.memory,
        overlap: bool = Options.overlap,
        **shared: Unpack[Shared],
    ) -> None:
        check_arguments(Options, locals())
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias, device, dtype, **shared)
        check_memory(memory, fuse_activation)
        self.process_group = process_group
        self.fuse_activation = fuse_activation
        self.memory = memory
        self.overlap = overlap

    @property
    def process_group(self) -> ProcessGroup | None:
        """The ranks to synchronize over; None for all of them. May be set at any time."""
        return self.own_group.group

    @process_group.setter
    def process_group(self, group: ProcessGroup | None) -> None:
        self.own_group = OwnGroup(group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = {"own_group": OwnGroup(None), **state}
        state.pop("process_group", None)  # of version 0.1, which pickled no layer with a group
        super().__setstate__(state)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize (N, C, *); where `mask`, (N, *), is False, output and gradient are 0, and nothing is counted."""
        self.check_input(input, mask)
        if mask is not None:
            mask = mask.unsqueeze(1)
            input = torch.where(mask, input, 0)
        if self.training or self.running_mean is None:
            group = self.communicating_group() if self.training else None
            self._check_batch(input, group)
            if group is not None and self.place is not None and not compat.is_tracing():
                self.place.depart()
            wide = self.widened(input)
            moments = self.choose_moments(wide, mask, group)
            output = self.normalize_batch(wide, moments, group)
            output = output if wide is input else output.to(input.dtype)
            if self.training:
                self.track(moments)
        else:
            output = self.evaluate(input)
        return output if mask is None else torch.where(mask, output, 0)

    def widened(self, input: Tensor) -> Tensor:
        """`input` as `choose_moments` and `normalize_batch` get it."""
        return widened(input)

    def communicating_group(self) -> ProcessGroup | None:
        """Group to reduce over in training; None if there are no other ranks."""
        return self.own_group.communicating()

    def choose_moments(self, input: Tensor, mask: Tensor | None, group: ProcessGroup | None) -> Moments:
        """Choose the moments to normalize by in training: those of all ranks' batches."""
        return group_moments(input, mask, group)

    def normalize_batch(self, input: Tensor, moments: Moments, group: ProcessGroup | None) -> Tensor:
        """Normalize a training batch by the chosen moments."""
        weight, bias = self.affine_parameters(input)
        if (
            self.fuse_activation
            and torch.is_grad_enabled()
            and not (compat.is_tracing() or compat.has_output_hooks(self))
        ):
            statistics = *_as_statistics(moments, input), moments.count
            return Deferred.of(Normalization(input, weight, bias, *statistics, self.eps, group, self.memory))
        return normalize(input, weight, bias, moments, self.eps, group)

    def affine_parameters(self, input: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Effective γ and β: in the dtype of the statistics and, for `memory="invert"`, with γ away from 0."""
        weight, bias = super().affine_parameters(input)
        return (away_from_zero(weight) if self.memory == "invert" and weight is not None else weight), bias

    def adopt(self, old: nn.Module) -> None:
        """Take over the state of `old`.

        Raises:
            ValueError: with `memory="invert"`, a γ so small that it would be replaced.
        """
        super().adopt(old)
        if self.memory == "invert" and self.weight is not None:
            check_scale(self.weight)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        if self.fuse_activation:
            shown += f", fuse_activation=True, memory={self.memory!r}"
        return f"{shown}, overlap=True" if self.overlap else shown

    def _check_batch(self, input: Tensor, group: ProcessGroup | None) -> None:
        if (group is None or group.size() == 1) and input.numel() == self.num_features:
            raise ValueError(
                f"a batch of one sample a channel has no variance, got shape {tuple(input.shape)}; use a larger batch, "
                "eval mode, or more ranks"
            )
        refused = [t for t in compat.functorch_transforms() if t not in ("grad", "functionalize")]
        if refused:
            raise NotImplementedError(
                f"batch statistics can't be taken under torch.func.{refused[0]}: use grad, vjp or jacrev, or eval mode"
            )
        tracks = self.training and self.track_running_stats and self.running_mean is not None
        if tracks and compat.functorch_transforms():
            raise NotImplementedError(
                "running statistics can't be updated under a torch.func transform: use eval mode, or "
                "track_running_stats=False"
            )
