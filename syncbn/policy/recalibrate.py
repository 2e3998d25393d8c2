"""Exact running statistics at fixed weights (recalibration)."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.capabilities import clear_window, synchronizes
from syncbn.norm.core.exchange import communicating_group
from syncbn.norm.core.moments import Moments, all_reduce, batch_moments, pool, unbiased_var
from syncbn.norm.core.tracking import TrackingNorm
from syncbn.norm.surgery.forward import Forward, modes_kept, refuse_without_values
from syncbn.norm.surgery.given import check_given
from syncbn.norm.surgery.select import Globs, select_layers
from syncbn.policy.batches import (
    call,
    device_of,
    generators_kept,
    in_step,
    num_samples,
    single_samples_skipped,
    unwrapped,
)
from syncbn.policy.freeze import has_frozen_statistics, has_moving_statistics
from syncbn.policy.layers import buffers_of, has_statistics, refuse_uncalled

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    max_batches: int | None = None,
    forward: Forward | None = None,
    process_group: ProcessGroup | None = None,
    include: Globs = None,
    exclude: Globs = None,
) -> nn.Module:
    """Replace running statistics by the exact mean and variance of the layers' inputs over `batches`, in place.

    For each layer, over all samples x of all batches, of all ranks, and of all its calls in a forward pass, in float64:

        running_mean = Σx / n,  running_var = Σ(x - running_mean)² / (n - 1)

    A momentum would instead weigh recent batches most and mix in statistics of earlier weights. Moments of unequal
    batches are merged by the law of total variance. Meanwhile these layers normalize by their batch (synchronized ones
    by that of all ranks) and everything else is in eval mode: statistics are those of the evaluated network, without
    dropout. Layers frozen by `freeze`, frozen norms (of this package, torchvision or others) and layers that the
    batches don't reach aren't changed. Weights, modes and the state of random generators are restored; the window of
    cross-iteration batch normalization is cleared. Moving average batch normalization, which subtracts no mean, gets
    running_mean = 0 and running_var = Σx² / n; torch's instance normalization the averages of its samples' moments.

    Use batches as large as in training, or larger: a layer's input depends on the normalization before it.

    Args:
        model: any model with batch normalization layers of torch or of this package, wrapped by DDP or not.
        batches: inputs (N, ...), tuples (inputs, ...), or dicts of the model's keyword arguments, of any sizes; the
            same number of them on every rank. One of a single sample, where a layer can take no statistics of it, is
            skipped with a warning.
        max_batches: use the first ones only. All when None.
        forward: how to call the model, `forward(model, batch)`; the batch is on the model's device.
        process_group: the ranks to pool over; the default group when None.
        include: globs of module names. All when None.
        exclude: globs of module names whose statistics aren't changed.

    Returns:
        `model`.

    Raises:
        ValueError: no batches, or another number of them on another rank; no layer to recalibrate; fewer than two
            samples of a channel; statistics that aren't finite; a layer whose statistics aren't one number a channel.
            The running statistics are then as before.
        TypeError: a batch that the model can't be called with, without `forward`.

    Source:
        Wu & Johnson, Rethinking "Batch" in BatchNorm, 2021, https://arxiv.org/abs/2105.07576, section 3 ("precise
        BatchNorm").
    """
    check_given(locals(), required=("batches",))
    refuse_without_values(model)
    layers = _layers(model, include, exclude)
    net, device = unwrapped(model), device_of(model)
    group = communicating_group(process_group)
    sums = {layer: _sum(path, layer) for path, layer in layers}
    with _other_state_kept(sums), modes_kept(model), generators_kept(device), torch.no_grad():
        model.eval()
        for layer in sums:
            layer.training = True
            clear_window(layer)  # the result is that of these batches, whatever the training saw before
        handles = [layer.register_forward_pre_hook(s.add, with_kwargs=True) for layer, s in sums.items()]
        synchronized = any(synchronizes(layer) for layer in sums)
        count = 0
        try:
            for batch in in_step(batches, max_batches, device, group, forward):
                count += 1
                if num_samples(batch) == 0 and not synchronized:  # torch's layers refuse an empty batch
                    continue
                before = {each: each.moments for each in sums.values()}
                with single_samples_skipped(batch, partial(_restore, before)):
                    call(net, batch, forward)
        finally:
            for handle in handles:
                handle.remove()
        totals = {layer: s.total(group) for layer, s in sums.items()}
        if not any(moments.count for moments in totals.values()):
            raise ValueError(f"no sample of the {count} batches reaches a layer to recalibrate")
        for layer, moments in totals.items():
            sums[layer].write(layer, moments, count)
    for layer in sums:
        clear_window(layer)
    return model


def moving_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers, with their paths, whose running statistics follow the training."""
    return [(path, layer) for path, layer in select_layers(model, has_statistics) if has_moving_statistics(layer)]


def other_statistics(layer: nn.Module) -> list[str]:
    """Names of a layer's statistics that aren't a mean or a variance, and can't be recalibrated."""
    running = {name for name in buffers_of(layer) if name.startswith("running_")}
    return sorted(running - {"running_mean", "running_var"})


def _layers(model: nn.Module, include: Globs, exclude: Globs) -> list[tuple[str, nn.Module]]:
    layers = select_layers(model, has_statistics, include, exclude)
    refuse_uncalled(model, [(path, layer) for path, layer in layers if not has_frozen_statistics(layer)], "recalibrate")
    moving = [(path, layer) for path, layer in layers if has_moving_statistics(layer)]
    if not moving:
        frozen = f"; {len(layers)} are frozen, {_thaw(layers)} first" if layers else ""
        raise ValueError(f"the model has no layer whose running statistics can be recalibrated{frozen}")
    return moving


def _thaw(layers: list[tuple[str, nn.Module]]) -> str:
    if any(has_frozen_statistics(layer) for _, layer in layers):
        return "syncbn.unfreeze them"
    return f'syncbn.revert(model), or syncbn.convert(model, "batch") of {type(layers[0][1]).__name__} layers,'


def _restore(moments: dict[_Sum, Moments]) -> None:
    for each, value in moments.items():
        each.moments = value


class _Sum:
    """Accumulated moments of one layer's input."""

    def __init__(self, path: str, layer: Any) -> None:
        self.path = path or "the layer"
        if others := other_statistics(layer):
            raise ValueError(
                f"{self.path} normalizes by more than a mean and a variance ({', '.join(others)}), which only "
                "training measures: leave it out with exclude="
            )
        self.shape = layer.running_mean.shape  # while the layer normalizes by its batch alone it has no running mean
        self.moments = _nothing(layer.running_mean)

    def add(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = (args[0] if args else kwargs["input"]).detach()
        mask = args[1] if len(args) > 1 else kwargs.get("mask")
        self.check(x)
        if mask is not None:
            mask = mask.unsqueeze(1)
            x = torch.where(mask, x, 0)
        self.moments = pool(self.moments, batch_moments(x, mask))

    def check(self, x: Tensor) -> None:
        if len(self.shape) != 1 or x.dim() < 2 or x.shape[1] != self.shape[0]:
            raise ValueError(
                f"{self.path} has running statistics of shape {tuple(self.shape)} for an input of shape "
                f"{tuple(x.shape)}: leave it out with exclude="
            )

    def total(self, group: ProcessGroup | None) -> Moments:
        return all_reduce(self.moments, group)

    def write(self, layer: Any, moments: Moments, count: int) -> None:
        """Write the moments of `count` batches to the layer's buffers."""
        if moments.count == 0:
            return
        if moments.count < 2:
            raise ValueError(f"{self.path} has seen a single sample of each channel: give it more, or larger, batches")
        if not (moments.mean.isfinite().all() and moments.m2.isfinite().all()):
            raise ValueError(
                f"{self.path} has seen values that aren't finite: look for NaN in the data and the weights"
            )
        exact = isinstance(layer, TrackingNorm)
        mean, var = layer.statistics_of(moments) if exact else (moments.mean, unbiased_var(moments))
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
        if getattr(layer, "num_batches_tracked", None) is not None:
            layer.num_batches_tracked.fill_(count)


def _sum(path: str, layer: nn.Module) -> _Sum:
    return (_SampleSum if isinstance(layer, compat.INSTANCE_NORMS) else _Sum)(path, layer)


class _SampleSum(_Sum):
    """Sums of the moments of each sample, whose averages instance normalization takes for its running statistics."""

    def __init__(self, path: str, layer: Any) -> None:
        super().__init__(path, layer)
        self.moments = _nothing(layer.running_mean.repeat(2))

    def add(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = (args[0] if args else kwargs["input"]).detach()
        dimensions = next(n for n, kind in enumerate(compat.INSTANCE_NORMS, start=3) if isinstance(layer, kind))
        x = x.unsqueeze(0) if x.dim() == dimensions - 1 else x  # a sample without a batch
        self.check(x)
        var, mean = torch.var_mean(x.flatten(2).to(self.moments.mean.dtype), dim=2)
        self.moments = pool(self.moments, batch_moments(torch.cat([mean, var], dim=1)))

    def write(self, layer: Any, moments: Moments, count: int) -> None:
        if moments.count:
            mean, var = moments.mean.chunk(2)
            enough = moments.count.clamp(min=2)  # one sample has a variance of its own
            super().write(layer, Moments(enough, mean, var * (enough - 1)), count)


def _nothing(running_mean: Tensor) -> Moments:
    wide = torch.float32 if running_mean.device.type == "mps" else torch.float64
    zeros = torch.zeros(running_mean.shape, dtype=wide, device=running_mean.device)
    return Moments(zeros.new_zeros(()), zeros, zeros)


_WRITTEN = {"running_mean", "running_var", "num_batches_tracked"}


@contextmanager
def _other_state_kept(layers: Collection[nn.Module]) -> Iterator[None]:
    """Restore what only training may update, such as a number of iterations; after a failure, the statistics too."""
    before = [(name, buffer, buffer.clone()) for layer in layers for name, buffer in buffers_of(layer).items()]
    extra = [layer for layer in layers if type(layer).get_extra_state is not nn.Module.get_extra_state]
    states = [copy.deepcopy(layer.get_extra_state()) for layer in extra]
    kept: set[str] = set()
    try:
        yield
        kept = _WRITTEN
    finally:
        for name, buffer, value in before:
            if name not in kept:
                buffer.data.copy_(value)
        for layer, state in zip(extra, states, strict=True):
            layer.set_extra_state(state)
