"""Moving average batch normalization: windows of second moments forward and of gradient moments backward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from syncbn.norm.core import compat
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.exchange import all_sum
from syncbn.norm.core.kernels import kernels_for
from syncbn.norm.core.leaf import keep_out_of_graphs
from syncbn.norm.core.linear_maps import is_transposed
from syncbn.norm.core.moments import Moments, biased_var
from syncbn.norm.core.registry import register
from syncbn.norm.core.reparametrizing import Reparametrizing
from syncbn.norm.core.running import RunningNorm
from syncbn.norm.core.shared_options import Shared
from syncbn.norm.kernels.interface import ChannelAffine, Kernels
from syncbn.norm.kernels.plain import PLAIN, statistics_dtype
from syncbn.norm.moving_average_options import MovingAverageOptions as Options
from syncbn.norm.sync import SyncBatchNorm, group_moments

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@register("moving_average", options=Options)
class MovingAverageBatchNorm(Reparametrizing, RunningNorm, SyncBatchNorm):
    r"""Moving average batch normalization (MABN): averages over iterations in both passes, without a mean.

    Training, with ν = E[x²] over all ranks' batches and ν̄ its mean over the last `window` iterations:

        y = r · x / sqrt(ν̄ + eps) · γ + β,  r = clip(sqrt((ν̄ + eps) / (running_var + eps)), 1 / r_max, r_max)
        dx = (g - z · ψ̄) / sqrt(ν̄ + eps),  with g = dy · γ · r, z = x / sqrt(ν̄ + eps) and ψ̄ the average over the last
        `window` backward passes of ψ = E[g · z] over all ranks' batches

    and running_var averages ν̄ by `momentum`; running_mean is always 0, so evaluation is as in batch normalization. The
    first `warmup` iterations use ν and ψ instead of their averages; r is 1 in the first `r_start`. The mean isn't
    subtracted. Instead, each filter of the preceding convolution or linear layer is centred to a mean of 0: `attach`
    (called by `syncbn.convert` and this package's models) adds a parametrization to that layer, and `detach` restores
    its weight.

    dx isn't the derivative of y, which would use only this batch's ψ, and there is no second derivative. The averages
    of gradients are in units of the loss: a change of the loss scale (`torch.amp.GradScaler`, float16) disturbs them
    for `window` steps. There is one all-reduce of 2C + 1 float64 numbers forward and one of C backward; all ranks hold
    the same averages, in buffers. `syncbn.convert` starts from running_var + running_mean², and `revert` leaves a
    running_mean of 0 and E[x²] as the variance. A compiled graph breaks at this layer before torch 2.13, in which a
    compiled backward pass doesn't update averages.

    Args:
        num_features: C of an input (N, C, *).
        window: iterations to average over; at least 1.
        warmup: number of first iterations that use the batch's own statistics.
        r_max: limit of r; at least 1.
        r_start: number of first iterations without r.
        centre: whether the preceding filters are centred; otherwise no layer needs to be attached.
        eps: added to the second moment; greater than 0.
        momentum: weight of ν̄ in running_var, in [0, 1]; None for the mean of all.
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
        ValueError, TypeError: as `SyncBatchNorm`; an argument out of range; in training, no attached layer.
        NotImplementedError: a second derivative; activation checkpointing recomputes a pass that isn't the last.

    Source: Yan et al., Towards Stabilizing Batch Statistics in Backward Propagation of Batch Normalization, ICLR 2020,
        https://arxiv.org/abs/2001.06838; r and the defaults are those of the authors' code.
    """

    own_state = ("square_window", "num_squares", "gradient_window", "num_gradients")
    evaluates_as_batch_norm = True
    square_window: Tensor
    num_squares: Tensor
    gradient_window: Tensor
    num_gradients: Tensor

    def __init__(
        self,
        num_features: int,
        window: int = Options.window,
        warmup: int = Options.warmup,
        r_max: float = Options.r_max,
        r_start: int = Options.r_start,
        centre: bool = Options.centre,
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
        _keep_out_of_graphs()
        super().__init__(num_features, eps, momentum, affine, True, process_group, bias, device, dtype, **shared)
        self.remember(2, device)
        self.window, self.warmup, self.r_max, self.r_start, self.centre = window, warmup, r_max, r_start, centre
        self._no_feeder: str | None = None
        for averaged in ("square", "gradient"):
            self.register_buffer(f"{averaged}_window", torch.zeros(window, num_features, device=device))
            self.register_buffer(f"num_{averaged}s", torch.zeros((), dtype=torch.long, device=device))

    def __setstate__(self, state: dict[str, Any]) -> None:
        _keep_out_of_graphs()
        super().__setstate__(state)

    # --- the preceding layer ----------------------------------------------------------------------------------------

    @property
    def is_attached(self) -> bool:
        """Whether the preceding layer's filters are centred or needn't be."""
        return not self.centre or self._no_feeder is not None or super().is_attached

    def detach(self) -> None:
        super().detach()
        self._no_feeder = None

    def without_feeder(self, reason: str) -> None:
        """Normalize without centring, since no single layer feeds this one."""
        self.detach()
        self._no_feeder = reason

    def _parametrize(self, feeder: Any) -> None:
        centred = _Centred(feeder.groups if is_transposed(feeder) else None)
        parametrize.register_parametrization(feeder, "weight", centred)

    def _restore(self, feeder: Any) -> None:
        parametrize.remove_parametrizations(feeder, "weight", leave_parametrized=False)

    # --- training ---------------------------------------------------------------------------------------------------

    def choose_moments(self, input: Tensor, mask: Tensor | None, group: ProcessGroup | None) -> Moments:
        """Choose a mean of 0 and the window's E[x²] as the variance."""
        if self.training and not self.is_attached:
            raise ValueError(
                "this layer expects centred filters before it and doesn't know that layer: call norm.attach(conv), or "
                "syncbn.norm.surgery.feeding.attach_norms(model), as syncbn.convert does, or build it with centre=False"
            )
        with torch.no_grad():
            batch = group_moments(input, mask, group)
            square = biased_var(batch) + batch.mean.square()
            average = self._slide("square", square, batch.count, once=True)
            assert self.running_var is not None
            average, _ = self.as_first_seen(batch, torch.stack([average, self.running_var])).to(square.dtype)
            return Moments(batch.count, torch.zeros_like(average), average * batch.count)

    def normalize_batch(self, input: Tensor, moments: Moments, group: ProcessGroup | None) -> Tensor:
        square = biased_var(moments).to(statistics_dtype(input))
        _, _, running_var = self.get_buffer("_first_seen")
        limit = torch.where(self.num_squares > self.r_start, square.new_full((), self.r_max), 1.0)
        r = ((square + self.eps) / (running_var.to(square.dtype) + self.eps)).sqrt().clamp(1 / limit, limit)
        weight, bias = self.affine_parameters(input)
        weight = r if weight is None else r * weight
        return _Normalize.apply(input, weight, bias, square, moments.count, self, group)

    def track(self, moments: Moments, **options: Any) -> None:
        super().track(moments, second_moment=True)

    def statistics_of(self, moments: Moments) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(moments.mean), biased_var(moments) + moments.mean.square()

    def average_gradient(self, total: Tensor, count: Tensor, group: ProcessGroup | None) -> Tensor:
        """Update ψ̄ with this backward pass, from this rank's Σ g·z."""
        # Losses are averaged over ranks. Divided by the world size, the average is that of one process. The message
        # counts the ranks: `group.size()` would be a constant of a compiled graph, which may run in another group.
        sums = all_sum(torch.cat([total.to(count.dtype), count.new_ones(1)]), group)
        world_size = sums[-1]
        mean = sums[:-1] / (count.clamp(min=1) * world_size)
        return (self._slide("gradient", mean, count, once=False) * world_size).to(total.dtype)

    def _check_batch(self, input: Tensor, group: ProcessGroup | None) -> None:
        if compat.functorch_transforms():
            raise NotImplementedError("averages over iterations can't move under a torch.func transform: use eval mode")

    def _slide(self, name: str, value: Tensor, count: Tensor, once: bool) -> Tensor:
        """Average of `value` and the earlier ones; a `value` without samples, or not finite, is left out."""
        slide = torch.ops.syncbn.slide if torch.compiler.is_compiling() else _slide
        window, counter = self.get_buffer(f"{name}_window"), self.get_buffer(f"num_{name}s")
        return slide(window, counter, value.to(window.dtype), count > 0, self.warmup, once)

    # --- the state --------------------------------------------------------------------------------------------------

    def reset_own_state(self) -> None:
        """Empty both windows."""
        for name in self.own_state:
            nn.init.zeros_(self.get_buffer(name))

    def adopt(self, old: nn.Module) -> None:
        self._fold_mean()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._fold_mean()  # from a checkpoint of batch normalization

    @torch.no_grad()
    def _fold_mean(self) -> None:
        """Convert statistics about a mean to statistics about 0, in new tensors."""
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_var = self.running_var + self.running_mean.square()
        self.running_mean = torch.zeros_like(self.running_mean)

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, window={self.window}, warmup={self.warmup}, r_max={self.r_max}"
        text = f"{text}, r_start={self.r_start}, centre={self.centre}"
        return text if self._no_feeder is None else f"{text}, not centred since {self._no_feeder}"


def _keep_out_of_graphs() -> None:
    if not compat.COMPILED_BACKWARD_WRITES:
        keep_out_of_graphs(MovingAverageBatchNorm, "forward")


class _Normalize(torch.autograd.Function):
    """y = x / sqrt(square + eps) · weight + bias; the gradient of x uses the averages of `layer`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        square: Tensor,
        count: Tensor,
        layer: MovingAverageBatchNorm,
        group: ProcessGroup | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, square, count)
        ctx.layer, ctx.group = layer, group
        return _kernels(x).normalize(x, ChannelAffine(torch.zeros_like(square), square, layer.eps, weight, bias))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("moving average batch normalization has no second derivative")
        x, weight, square, count = ctx.saved_tensors
        affine = ChannelAffine(torch.zeros_like(square), square, ctx.layer.eps)
        sum_dy, sum_dy_z = _kernels(x, dy).reduce_grad(dy, x, affine)
        dx = None
        if ctx.needs_input_grad[0]:
            average = ctx.layer.average_gradient(weight * sum_dy_z, count, ctx.group)
            scale = (square + ctx.layer.eps).rsqrt()
            shape = (-1, *[1] * (x.dim() - 2))
            dx = x.to(scale.dtype) * (average * scale.square()).neg_().view(shape)
            dx = dx.add_(dy.to(scale.dtype) * (weight * scale).view(shape)).to(x.dtype)
        return dx, sum_dy_z, sum_dy if ctx.needs_input_grad[2] else None, None, None, None, None


def _kernels(*tensors: Tensor) -> Kernels:
    # `torch.compile` traces this function's forward and backward pass, and `kernels_for` can't be traced.
    return PLAIN if torch.compiler.is_compiling() else kernels_for(*tensors)


class _Centred(nn.Module):
    """Parametrization that centres each filter of a weight to a mean of 0."""

    def __init__(self, transposed_groups: int | None) -> None:
        super().__init__()
        self.transposed_groups = transposed_groups

    def forward(self, weight: Tensor) -> Tensor:
        if self.transposed_groups is None:  # (C_out, ...)
            return weight - weight.mean(list(range(1, weight.dim())), keepdim=True)
        by_group = weight.unflatten(0, (self.transposed_groups, -1))  # (groups, C_in / groups, C_out / groups, *kernel)
        centred = by_group - by_group.mean([1, *range(3, by_group.dim())], keepdim=True)
        return centred.flatten(0, 1)


def _slide(window: Tensor, counter: Tensor, value: Tensor, valid: Tensor, warmup: int, once: bool) -> Tensor:
    if once and compat.in_backward():  # a recomputed forward pass gets the same result
        return value.clone()
    valid = valid & value.isfinite().all()
    slot = (counter % len(window)).view(1)
    window.index_copy_(0, slot, torch.where(valid, value, window[slot[0]]).unsqueeze(0))
    counter.add_(valid)
    average = window.sum(0) / counter.clamp(1, len(window))
    return torch.where(valid & (counter > warmup), average, value)


_OPERATOR = torch.library.custom_op("syncbn::slide", _slide, mutates_args=("window", "counter"))


@_OPERATOR.register_fake
def _(window: Tensor, counter: Tensor, value: Tensor, valid: Tensor, warmup: int, once: bool) -> Tensor:
    return torch.empty_like(value)
