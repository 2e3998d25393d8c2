"""Inspection of a network's batch norms: whether their statistics match the data, and other common problems."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.capabilities import synchronizes
from syncbn.norm.core.exchange import all_sum, communicating_group
from syncbn.norm.core.moments import Moments, all_reduce, batch_moments, biased_var, pool
from syncbn.norm.surgery.feeding import layer_before, other_use
from syncbn.norm.surgery.forward import Forward, modes_kept, refuse_without_values
from syncbn.norm.surgery.given import check_given
from syncbn.norm.surgery.record import record
from syncbn.policy.batches import call, device_of, generators_kept, in_step, on_device, unwrapped
from syncbn.policy.diagnose import Facts, diagnose
from syncbn.policy.freeze import has_moving_statistics
from syncbn.policy.layers import has_statistics, refuse_uncalled
from syncbn.policy.report import NormReport, NormRow

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_HUGE_VARIANCE = 1e6


def inspect(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    reference: Iterable[Any] | None = None,
    max_batches: int | None = None,
    steps: int | None = None,
    forward: Forward | None = None,
    process_group: ProcessGroup | None = None,
) -> NormReport:
    """Measure each batch normalization layer with running statistics, and warn about common problems.

    Without batches: dead and exploding channels, ranks whose statistics differ, layers in the wrong mode. With
    batches, in evaluation and without changes to the model: the distance of running statistics from the batches', the
    gap between outputs in training and evaluation, the number of samples, redundant biases. Each warning has an
    identifier and a page of that name in docs/warnings.

    Args:
        model: any model with batch normalization layers of torch or of this package, as it is about to be used.
        batches: inputs (N, ...), tuples (inputs, ...), or dicts of the model's keyword arguments, as in training; the
            same number of them on every rank.
        reference: batches of the domain that the model was trained on, to measure the drift of `batches` from it.
        max_batches: use the first ones only. All when None.
        steps: optimizer steps of the training, to judge the momentum by.
        forward: how to call the model, `forward(model, batch)`; the batch is on the model's device.
        process_group: the ranks that inspect together; the default group when None.

    Returns:
        `.rows`, `.warnings`, `.to_markdown()`, `.plot(path)`, `.to_rich()` and `.to_wandb()`.

    Raises:
        ValueError: steps below 1; a model without values; no layer with running statistics; no batches, or another
            number of them on another rank.
        TypeError: a batch that the model can't be called with, without `forward`.
    """
    check_given(locals())
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, the optimizer's steps in the training, got {steps}")
    refuse_without_values(model)
    group = communicating_group(process_group)
    probes = probes_of(model, group)
    refuse_uncalled(model, [(probe.name, probe.layer) for probe in probes], "inspect", "")
    if not probes:
        graphs = [(name, layer) for name, layer in model.named_modules() if has_statistics(layer)]
        refuse_uncalled(model, graphs, "inspect", "")
        raise ValueError("the model has no batch normalization layer with running statistics to inspect")
    moving = {p.layer for p in probes if has_moving_statistics(p.layer)}
    wrong_mode = {layer for layer in moving if layer.training and not model.training}
    biases: dict[nn.Module, str] = {}
    if reference is not None:
        _measure(model, probes, reference, max_batches, group, forward)
        for probe in probes:
            probe.becomes_reference()
    if batches is not None:
        iterator = iter(batches)
        first = list(islice(iterator, 1))
        if first:
            biases = _redundant_biases(model, first[0], forward)
        _measure(model, probes, chain(first, iterator), max_batches, group, forward)
    facts = [
        Facts(
            row=probe.row(),
            synchronized=probe.group is not None,
            momentum=probe.layer.momentum if probe.layer in moving else None,
            steps=steps,
            in_training_mode_at_evaluation=probe.layer in wrong_mode,
            redundant_bias=biases.get(probe.layer),
        )
        for probe in probes
    ]
    return NormReport([f.row for f in facts], [warning for f in facts for warning in diagnose(f)])


def probes_of(model: nn.Module, group: ProcessGroup | None) -> list[LayerProbe]:
    """Make a probe for each layer that can be measured."""
    return [LayerProbe(name, layer, group) for name, layer in model.named_modules() if _is_inspected(layer)]


class LayerProbe:
    """Measures one layer while batches pass through it, in any mode. `add` is a forward pre-hook."""

    def __init__(self, name: str, layer: Any, pool: ProcessGroup | None) -> None:
        self.name = name
        self.layer = layer
        self.pool = pool  # ranks whose batches the statistics are compared with
        # Ranks over which the layer synchronizes.
        self.group = communicating_group(layer.process_group) if synchronizes(layer) else None
        self.mean = layer.running_mean.to(torch.float64, copy=True)  # a copy: training updates the layer's own
        self.std = (layer.running_var.double() + layer.eps).sqrt()
        self.reference: Moments | None = None
        self._clear()

    def _clear(self) -> None:
        self.batches: list[Moments] = []
        self.gaps: list[Tensor] = []

    def add(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add the moments of a layer's input."""
        x = (args[0] if args else kwargs["input"]).detach()
        mask = args[1] if len(args) > 1 else kwargs.get("mask")
        if mask is not None:
            mask = mask.unsqueeze(1)
            x = torch.where(mask, x, 0)
        with torch.no_grad():
            local = batch_moments(x, mask)
            self.batches.append(local)
            self.gaps.append(self._squared_gap(all_reduce(local, self.group)))

    def _squared_gap(self, batch: Moments) -> Tensor:
        """E[(y_eval - y_train)²] / E[γ²] of one batch, where y_eval - y_train is linear in x; and the count."""
        layer = self.layer
        shift = (batch.mean - self.mean) / self.std
        stretch = (biased_var(batch) + layer.eps).sqrt() / self.std - 1
        square = torch.ones_like(shift) if layer.weight is None else layer.weight.detach().double().square()
        gap = (square * (shift.square() + stretch.square())).mean() / square.mean().clamp(min=1e-30)
        return torch.stack([gap * batch.count, batch.count])

    def becomes_reference(self) -> None:
        """Make the batches so far the reference for later ones."""
        self.reference = self._pooled()
        self._clear()

    def row(self) -> NormRow:
        """Row of the measurements. Every rank must call it, since it pools moments."""
        layer = self.layer
        weight = None if layer.weight is None else layer.weight.detach().double()
        parts = [layer.running_mean, layer.running_var, layer.weight, layer.bias]
        finite = torch.stack([part.detach().isfinite() for part in parts if part is not None]).all(0)
        finite &= layer.running_var + layer.eps >= 0  # else the output isn't, such as after an average of weights alone
        dead = finite & (layer.running_var < layer.eps)
        if weight is not None:
            dead = dead | (weight.abs() < 1e-3 * weight.abs().max())
        measured: dict[str, Any] = {}
        if self.pool is not None:
            average = all_sum(self.mean.clone(), self.pool) / self.pool.size()
            spread = (all_sum((self.mean - average).square(), self.pool) / self.pool.size()).sqrt() / self.std
            measured["rank_difference"] = float(spread.max())
        if self.batches:
            measured |= self._compared()
        return NormRow(
            layer=self.name,
            kind=type(layer).__name__,
            channels=len(self.mean),
            dead=int(dead.sum()),
            exploding=int((~finite | (layer.running_var > _HUGE_VARIANCE)).sum()),
            **measured,
        )

    def _compared(self) -> dict[str, Any]:
        seen = self._pooled()
        seen_std = (biased_var(seen) + self.layer.eps).sqrt()
        gap, count = all_sum(torch.stack(self.gaps).sum(0), self.pool)
        found = {
            "samples": int(torch.stack(self.gaps)[:, 1].max()),
            "mean_distance": float(((self.mean - seen.mean) / seen_std).square().mean().sqrt()),
            "std_ratio": float((self.std / seen_std).log().abs().mean().exp()),
            "gap": float((gap / count.clamp(min=1)).sqrt()),
        }
        if self.reference is not None:
            distance = (seen.mean - self.reference.mean) / (biased_var(self.reference) + self.layer.eps).sqrt()
            found["drift"] = float(distance.square().mean().sqrt())
        return found

    def _pooled(self) -> Moments:
        return all_reduce(functools.reduce(pool, self.batches), self.pool)


def _measure(
    model: nn.Module,
    probes: list[LayerProbe],
    batches: Iterable[Any],
    max_batches: int | None,
    group: ProcessGroup | None,
    forward: Forward | None,
) -> None:
    device, net = device_of(model), unwrapped(model)
    handles = [p.layer.register_forward_pre_hook(p.add, with_kwargs=True) for p in probes]
    try:
        with modes_kept(model), generators_kept(device), torch.no_grad():
            model.eval()
            for batch in in_step(batches, max_batches, device, group, forward):
                call(net, batch, forward)
    finally:
        for handle in handles:
            handle.remove()


def _redundant_biases(model: nn.Module, batch: Any, forward: Forward | None) -> dict[nn.Module, str]:
    """The convolution with a bias that feeds a layer, by layer."""
    batch = on_device(batch, device_of(model))
    graph = record(unwrapped(model), batch, forward=partial(call, forward=forward))
    names = {module: name for name, module in model.named_modules()}
    found = {}
    for norm in graph.calls:
        if _is_inspected(norm.module) and norm.inputs:
            before = layer_before(graph, norm)
            if not isinstance(before, str) and not other_use(graph, before, norm):
                layer: Any = before.call.module
                if layer.bias is not None and layer in names:  # one in a plain list has no name
                    found[norm.module] = names[layer]
    return found


def _is_inspected(layer: Any) -> bool:
    """Whether a layer's statistics are those of its batches, and not of frozen layers or of single samples."""
    pooled = hasattr(layer, "momentum") and not isinstance(layer, compat.INSTANCE_NORMS)
    return has_statistics(layer) and pooled and layer.running_mean.dim() == 1
