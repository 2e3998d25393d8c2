"""Cross-iteration batch normalization: moments of the last iterations, corrected to the current weights."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.attachable import check_feeder
from syncbn.norm.core.leaf import keep_out_of_graphs
from syncbn.norm.core.linear_maps import filters
from syncbn.norm.core.moments import Moments, pool
from syncbn.norm.core.registry import register
from syncbn.norm.core.shared_options import Shared
from syncbn.norm.core.slots import Slot, carry, slot_of
from syncbn.norm.cross_iteration_options import CrossIterationOptions as Options
from syncbn.norm.kernels.plain import statistics_dtype
from syncbn.norm.sync import SyncBatchNorm, group_moments

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.utils.hooks import RemovableHandle


class _Seen(NamedTuple):
    """Data that the convolution's hook records for the layer."""

    feeder: nn.Module
    input: Tensor
    output: Tensor
    carried: Moments | None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of the layer starts without it


@register("cross_iteration", options=Options)
class CrossIterationBatchNorm(SyncBatchNorm):
    r"""Batch normalization by the moments of the last `window` iterations, corrected to the current weights.

    Training, over the current batch and the slots τ of the window's earlier iterations, each over all ranks:

        μ̂_τ = μ_τ + <∂μ_τ/∂θ, Δθ>,  ν̂_τ = max(ν_τ + <∂ν_τ/∂θ, Δθ>, μ̂_τ²),  with μ = E[x], ν = E[x²], Δθ = θ - θ_τ
        mean = Σ n_τ·μ̂_τ / Σ n_τ,  var = Σ n_τ·ν̂_τ / Σ n_τ - mean²,  y = (x - mean) / sqrt(var + eps) · γ + β

    where θ are the weight and the bias of the preceding convolution or linear layer, set by `attach` (`convert` and
    this package's models call it). Gradients flow through the moments of the current batch. The derivatives are closed
    forms, without autograd: E[p], the mean patch, and E[2(x - μ)p], one weight gradient of the convolution. If the
    earlier layers don't change, the corrected mean is exact and E[x²] is too small by E[(Δθ·p)²].

    running_mean and the running average of E[x²], from which running_var is computed, average the moments used for
    normalization. Evaluation uses only these. With `window=1` and in the first `burn_in` iterations the layer is
    `SyncBatchNorm`.

    Every forward pass in training mode is an iteration: each batch of gradient accumulation, also under
    `torch.no_grad()`, and each of several calls in a step. A pass recomputed by activation checkpointing isn't: it uses
    the window of the pass it recomputes. An iteration with non-finite moments has no weight in later ones.

    Communication is that of SyncBatchNorm plus an all-reduce of (C_out + groups)·D float32 numbers, with D the size of
    a filter, in the background until the next iteration. Each of the window's `window - 1` slots holds that many
    numbers and 2C more, in `state_dict` under `_extra_state` instead of in buffers, which DDP would send. Loading a
    checkpoint without it, such as one of `nn.BatchNorm2d`, empties the window.

    The layer runs in eager mode: `torch.compile(model)` has a graph break at the layer and its convolution.

    Args:
        num_features: C of an input (N, C) or (N, C, *spatial).
        window: number of iterations to take moments over, including the current one; at least 1.
        burn_in: number of first iterations that use only the current batch's moments, while weights change fast.
        sync: whether moments are of all ranks' batches instead of this rank's.
        process_group: the ranks to synchronize over; all of them when None.
        eps: added to the variance; greater than 0.
        momentum: weight of the new moments in the running statistics, in [0, 1]; None for the average of all.
        affine: whether there are γ and β.
        track_running_stats: whether there are running statistics.
        bias: whether an affine layer has β.
        device: device of parameters and buffers.
        dtype: dtype of the parameters. Statistics and slots are float32, or float64 for a float64 input.
        shared: options of every layer with running statistics, see `syncbn.norm.core.shared_options.Shared`.

    Shape:
        input (N, C, *), the tensor object that the attached layer returned; output the same shape, dtype and layout.

    Raises:
        ValueError: an argument out of range; in training, no attached layer, or an input that isn't what the
            attached layer returned last (a functional call with its weight, or a layer called in several places).
        TypeError: an attached module that is neither a convolution nor linear.
        NotImplementedError: a mask; a `torch.func` transform in training.

    Source:
        Yao et al., Cross-Iteration Batch Normalization, CVPR 2021, https://arxiv.org/abs/2002.05712.
    """

    is_per_channel = True  # apart from the window, which `clear_window` empties
    evaluates_as_batch_norm = True

    def __init__(
        self,
        num_features: int,
        window: int = Options.window,
        burn_in: int = Options.burn_in,
        sync: bool = Options.sync,
        process_group: ProcessGroup | None = None,
        eps: float = Options.eps,
        momentum: float | None = Options.momentum,
        affine: bool = Options.affine,
        track_running_stats: bool = Options.track_running_stats,
        bias: bool = Options.bias,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        _keep_out_of_graphs()
        check_arguments(Options, locals())
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, process_group, bias, device, dtype, **shared
        )
        self.window, self.burn_in, self.sync = window, burn_in, sync
        self._iterations = 0
        self._slots: collections.deque[Slot] = collections.deque(maxlen=window - 1)
        self._hook: RemovableHandle | None = None
        self._no_feeder: str | None = None
        self._seen: _Seen | None = None
        # For recomputing the last forward pass: the moments of its batch and of the window before it.
        self._current: Moments | None = None
        self._carried: Moments | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        _keep_out_of_graphs()
        super().__setstate__(state)

    # --- the preceding layer ----------------------------------------------------------------------------------------

    @property
    def is_attached(self) -> bool:
        """Whether the layer has an attached feeder or doesn't need one."""
        return self._hook is not None or self._no_feeder is not None or self.window == 1

    def attach(self, feeder: nn.Module) -> None:
        """Attach `feeder`, the convolution or linear layer before, to correct moments by its weights."""
        check_feeder(feeder, self.num_features)
        self.detach()
        # Before all other hooks: they may change the output, and FSDP's reshards the weight.
        self._hook = feeder.register_forward_hook(self._after_feeder, prepend=True, with_kwargs=True)

    def detach(self) -> None:
        """Detach the preceding layer and clear the window."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._no_feeder = None, None
        self.clear_window()

    def without_feeder(self, reason: str) -> None:
        """Normalize only by the current iteration, since no single layer feeds this one."""
        self.detach()
        self._no_feeder = reason

    def reset_parameters(self) -> None:
        """Reset γ to 1, β to 0, the running statistics, and the window."""
        super().reset_parameters()
        if hasattr(self, "_slots"):  # the base's constructor comes before it
            self.clear_window()

    def clear_window(self) -> None:
        """Clear the earlier iterations, for example after the weights were replaced."""
        self._slots.clear()
        self._seen, self._current, self._carried = None, None, None

    def _after_feeder(self, feeder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if not self._looks_back(self._iterations) or compat.in_backward():
            return
        input = args[0] if args else kwargs["input"]
        if isinstance(feeder, nn.Linear) and input.dim() != 2:
            raise ValueError(f"the Linear before a norm of channels takes (N, C), got shape {tuple(input.shape)}")
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            self._seen = _Seen(feeder, input, output, self._carry(feeder, output))

    def _carry(self, feeder: Any, output: Tensor) -> Moments | None:
        """Merge the moments of the window's earlier iterations at the current weights."""
        if not self._slots:
            return None
        theta = filters(feeder, feeder.weight.detach().to(statistics_dtype(output)))
        bias = None if feeder.bias is None else feeder.bias.detach()
        return carry(self._slots, theta, bias)

    # --- the moments ------------------------------------------------------------------------------------------------

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            raise NotImplementedError("cross-iteration moments take no mask: use SyncBatchNorm for masked samples")
        if self._looks_back(self._iterations) and compat.is_exporting():
            raise NotImplementedError(
                "a graph holds no window of iterations: export the model in evaluation mode, or convert it to 'sync'"
            )
        return super().forward(input)

    @property
    def synchronizes(self) -> bool:  # type: ignore[override]  # depends on an option
        """Whether moments are over all ranks' batches."""
        return self.sync

    def communicating_group(self) -> ProcessGroup | None:
        return super().communicating_group() if self.sync else None

    def choose_moments(self, input: Tensor, mask: Tensor | None, group: ProcessGroup | None) -> Moments:
        current = group_moments(input, mask, group)
        if not self.training:
            return current
        if compat.in_backward():
            self._check_recomputation(current)
        else:
            self._next_iteration(input, current, group)
        return current if self._carried is None else pool(self._carried, current)

    def track(self, moments: Moments, **options: Any) -> None:
        super().track(moments, second_moment=self._looks_back(self._iterations - 1), **options)

    def _next_iteration(self, input: Tensor, current: Moments, group: ProcessGroup | None) -> None:
        self._current, self._carried = current, None
        if self._looks_back(self._iterations):
            seen = self._take_seen(input)
            self._carried = seen.carried
            with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
                self._slots.append(slot_of(seen.feeder, seen.input, seen.output, current, group))
        self._iterations += 1

    def _looks_back(self, iteration: int) -> bool:
        """Whether an iteration, counted from 0, normalizes by a window; the same on all ranks for any data."""
        return self.training and self.window > 1 and self._no_feeder is None and iteration >= self.burn_in

    def _take_seen(self, input: Tensor) -> _Seen:
        seen, self._seen = self._seen, None
        if self._hook is None:
            raise ValueError(
                "this layer carries moments along the weights of the layer before it, which it doesn't know: call "
                "norm.attach(conv), or let syncbn.convert(model, 'cross_iteration') do it, or set window=1"
            )
        if seen is None or seen.output is not input:
            raise ValueError(
                "the input isn't what the attached layer returned last: a functional call uses its weight, an "
                "operation or a hook stands between the two, or it is called several times before this norm is; "
                "exclude this norm"
            )
        return seen

    def _check_recomputation(self, current: Moments) -> None:
        last = self._current
        if last is None or not torch.allclose(current.mean, last.mean, rtol=1e-3, atol=1e-6, equal_nan=True):
            raise NotImplementedError(
                "activation checkpointing repeats a forward pass that isn't this layer's last: with cross-iteration "
                "norms, call backward after each forward, or leave them out of the checkpointed part"
            )

    def _check_batch(self, input: Tensor, group: ProcessGroup | None) -> None:
        if self.window == 1:
            super()._check_batch(input, group)
        elif compat.functorch_transforms():
            raise NotImplementedError("a window of iterations can't move under a torch.func transform: use eval mode")

    # --- the state --------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Number of iterations and the window's slots, as plain tensors."""
        return {"iterations": self._iterations, "slots": [slot.tensors() for slot in self._slots]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `get_extra_state`."""
        channels = {len(tensors[1]) for tensors in state["slots"]}
        if channels - {self.num_features}:
            raise ValueError(f"slots of {channels} channels don't fit this layer of {self.num_features}")
        self.clear_window()
        self._iterations = state["iterations"]
        self._slots.extend(Slot.of_tensors(tensors) for tensors in state["slots"])

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._iterations == 0:
            destination.pop(f"{prefix}_extra_state")  # an empty window keeps the keys of nn.BatchNorm

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        # A checkpoint without slots, such as nn.BatchNorm's, empties the window: the slots belong to the old weights.
        without = {"iterations": self._iterations, "slots": []}
        super()._load_from_state_dict({f"{prefix}_extra_state": without, **state_dict}, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        slots = [slot.tensors() for slot in self._slots]
        self.clear_window()
        for tensors in slots:  # move devices, keep dtypes
            self._slots.append(Slot.of_tensors([t.to(fn(t.new_empty(0)).device) for t in tensors]))
        return self

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, window={self.window}, burn_in={self.burn_in}, sync={self.sync}"
        return text if self._no_feeder is None else f"{text}, no window since {self._no_feeder}"


def _keep_out_of_graphs() -> None:
    keep_out_of_graphs(CrossIterationBatchNorm, "_after_feeder", "forward")
