"""Base of all layers with running statistics: checks, buffers and their update."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from syncbn.norm.core import channels, compat
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.capabilities import Capabilities
from syncbn.norm.core.checks import check_channels, check_num_features
from syncbn.norm.core.moments import Moments, biased_var, unbiased_var
from syncbn.norm.core.shared_options import Shared, Tracking
from syncbn.norm.kernels.plain import statistics_dtype

_HALF = (torch.float16, torch.bfloat16)


class TrackingNorm(Capabilities, compat.BatchNormBase):
    """Base of batch normalization over (N, C, *): parameters, running statistics and input checks.

    Running statistics are never in half precision, even if the parameters are: after `.half()`, `.to(torch.bfloat16)`,
    with `dtype=torch.float16`, and after loading a half checkpoint.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = Tracking.eps,
        momentum: float | None = Tracking.momentum,
        affine: bool = Tracking.affine,
        track_running_stats: bool = Tracking.track_running_stats,
        bias: bool = Tracking.bias,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        num_features = check_num_features(num_features)
        check_arguments(Tracking, locals())
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if not bias:  # torch has this argument only from 2.12 on
            self.register_parameter("bias", None)
        for name, value in shared.items():
            setattr(self, name, value)
        self._widen_buffers()

    def reset_parameters(self) -> None:
        """Reset γ to 1, β to 0, and the running statistics."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        if self.affine and self.bias is None and "bias=" not in shown:  # before torch 2.12
            shown += ", bias=False"
        return shown + "".join(f", {name}={getattr(self, name)!r}" for name in Shared.__annotations__)

    def check_input(self, input: Tensor, mask: Tensor | None) -> None:
        """Raise `ValueError` or `TypeError` for an input that can't be normalized."""
        check_channels(input, self.num_features)
        if self.training and type(input).__name__ == "DTensor":  # not its class, whose import takes a second
            raise TypeError(
                "expected this rank's samples in a plain tensor, got a DTensor of all ranks': call input.to_local()"
            )
        if mask is None:
            return
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            raise TypeError(f"mask must be a bool tensor (True = counts), got {got}; compare it, as in mask > 0")
        expected = (input.shape[0], *input.shape[2:])
        if mask.shape != expected:
            raise ValueError(f"mask must have shape (N, *spatial) = {tuple(expected)}, got {tuple(mask.shape)}")

    def affine_parameters(self, input: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """γ and β in the statistics' dtype: for a half input, ATen accepts float32 parameters but not half ones."""
        dtype = statistics_dtype(input)
        return (
            None if self.weight is None else self.weight.to(dtype),
            None if self.bias is None else self.bias.to(dtype),
        )

    def evaluate(self, input: Tensor) -> Tensor:
        """Normalize by the running statistics, which must exist."""
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, var = as_constants(input, self.running_mean, self.running_var)
        weight, bias = self.affine_parameters(input)
        return compat.batch_norm(input, mean, var, weight, bias, self.eps)

    def track(
        self,
        moments: Moments,
        *,
        outright: bool = False,
        second_moment: bool = False,
        row: int | None = None,
        others: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Update the running statistics with the moments of a batch.

        The update is by `momentum` or, if it is None, to the mean of all batches so far, with the unbiased variance.
        With `outright` they become these moments. With `second_moment` E[x²] is averaged, with the biased variance, and
        running_var is that average minus running_mean². With `row`, buffers have a row for each set of statistics, and
        only this row is updated. `others` are further buffers by name, with the values to update them with.
        There is no update if the moments aren't finite, if there are no samples, if activation checkpointing recomputes
        a forward pass that was counted already, or while `track_running_stats` is off, which may change at any time.
        """
        running = self._tracked()
        if running is None:
            return
        momentum = 1.0 if outright else self.momentum
        if isinstance(momentum, Tensor):
            momentum = momentum.item()  # the operator takes a number
        usual = not second_moment and row is None and others is None and channels.serve(*moments)
        if usual and (compat.in_backward() or channels.track(*running, moments, momentum)):
            return
        update = torch.ops.syncbn.track if torch.compiler.is_compiling() else _track
        update(
            *running,
            moments.count.detach(),
            moments.mean.detach(),
            (biased_var(moments) if second_moment else unbiased_var(moments)).detach(),
            momentum,
            second_moment,
            row,
            [getattr(self, name) for name in others or {}],
            [target.detach() for target in (others or {}).values()],
        )

    def track_each(self, moments: Moments) -> None:
        """Update the running statistics with several batches: count (N,), mean and m2 (N, C); skip empty ones."""
        running = self._tracked()
        if running is not None:
            torch.ops.syncbn.track_each(*running, *(part.detach() for part in moments), self.momentum)

    def _tracked(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Buffers to update: the mean, the variance and the number of batches; None if there is nothing to update."""
        mean, var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if mean is None or var is None or not self.track_running_stats:
            return None
        if batches is None:
            if self.momentum is None:
                return None  # as torch's layer: the mean of all batches needs their number
            batches = torch.zeros((), dtype=torch.long, device=mean.device)
        return mean, var, batches

    def statistics_of(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """running_mean and running_var for evaluation of the very samples that `moments` are of."""
        return moments.mean, unbiased_var(moments)

    def adopt(self, old: nn.Module) -> None:
        """Take over the state of `old`; `convert` has transferred the parameters and buffers that both have.

        Raises:
            ValueError: the layer can't continue from `old`.
        """

    def _is_statistic(self, buffer: str) -> bool:
        own = vars(self).get("conversion")  # beside those of the layer there may be a guest's
        return own is None or buffer in own.names.buffers

    def _widen_buffers(self, originals: dict[str, Tensor] | None = None) -> None:
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.dtype in _HALF and self._is_statistic(name):
                source = (originals or {}).get(name, buffer)
                setattr(self, name, source.to(device=buffer.device, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        originals = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        self._widen_buffers(originals)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._widen_buffers()  # assign=True uses the checkpoint's own tensors


def _track_each(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    count: Tensor,
    mean: Tensor,
    m2: Tensor,
    momentum: float | None,
) -> None:
    running = running_mean, running_var, num_batches_tracked
    for row in count.nonzero().flatten():
        unbiased = m2[row] / (count[row] - 1).clamp(min=1)
        _track(*running, count[row], mean[row], unbiased, momentum, False, None, [], [])


torch.library.custom_op(
    "syncbn::track_each", _track_each, mutates_args=("running_mean", "running_var", "num_batches_tracked")
)


def as_constants(input: Tensor, *statistics: Tensor) -> tuple[Tensor, ...]:
    """Running statistics in the dtype that `input` is normalized in, as copies if a gradient may be needed.

    A backward pass reads them after the forward pass, and a training pass, `load_state_dict` or `recalibrate` between
    the two may update the buffers. An exported graph reads the buffers themselves.
    """
    dtype = statistics_dtype(input)
    if not torch.is_grad_enabled() or compat.is_exporting():
        return tuple(buffer.to(dtype) for buffer in statistics)
    # The compiler would save the buffers and copy them in the backward pass; what an operator returns is saved itself.
    copy = torch.ops.syncbn.copy if torch.compiler.is_compiling() else torch.clone
    return tuple(copy(buffer).to(dtype) for buffer in statistics)


def _track(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    count: Tensor,
    mean: Tensor,
    var: Tensor,
    momentum: float | None,
    second_moment: bool,
    row: int | None,
    others: Sequence[Tensor],
    targets: Sequence[Tensor],
) -> None:
    if compat.in_backward():
        return
    if row is not None:  # here, not in the caller: given a view, Inductor in torch 2.13 updates row 0
        running_mean, running_var, num_batches_tracked = (
            buffer[row] for buffer in (running_mean, running_var, num_batches_tracked)
        )
    mean, var = mean.to(running_mean.dtype), var.to(running_var.dtype)
    # A tensor instead of a bool, so that the host doesn't wait. Equal on all ranks, since the moments are.
    valid = (mean + var).isfinite().all() & (count > 0)
    for target in targets:
        valid = valid & target.isfinite().all()
    rate = momentum if momentum is not None else (num_batches_tracked + 1).to(mean.dtype).reciprocal()
    mean, var = torch.where(valid, mean, running_mean), torch.where(valid, var, running_var)
    if second_moment:  # average of E[x²] minus the new mean², without subtracting large numbers
        var = var + (1 - rate) * (mean - running_mean).square()
    running_mean.lerp_(mean, rate)
    running_var.lerp_(var, rate)
    for buffer, target in zip(others, targets, strict=True):
        buffer.lerp_(torch.where(valid, target.to(buffer.dtype), buffer), rate)
    num_batches_tracked.add_(valid)


# A custom operator checks for a running backward pass when the graph runs. A traced Python check would run only
# once, while tracing, and a checkpointed compiled block would count twice.
_OPERATOR = torch.library.custom_op(
    "syncbn::track",
    _track,
    mutates_args=("running_mean", "running_var", "num_batches_tracked", "others"),
    # torch 2.6 can't infer this from the annotations.
    schema=(
        "(Tensor(a0!) running_mean, Tensor(a1!) running_var, Tensor(a2!) num_batches_tracked, Tensor count, "
        "Tensor mean, Tensor var, float? momentum, bool second_moment, SymInt? row, Tensor(a9!)[] others, "
        "Tensor[] targets) -> ()"
    ),
)


_COPY = torch.library.custom_op("syncbn::copy", torch.clone, mutates_args=(), schema="(Tensor tensor) -> Tensor")


@_COPY.register_fake
def _(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor)
