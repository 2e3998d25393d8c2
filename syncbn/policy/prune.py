"""Removal of the channels with the smallest |γ|."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from syncbn.norm.core import compat
from syncbn.norm.core.capabilities import is_per_channel
from syncbn.norm.surgery.forward import Example, Forward, copied, copied_example, modes_kept, outside_of_modes, run
from syncbn.norm.surgery.given import check_given
from syncbn.norm.surgery.graph import Graph
from syncbn.norm.surgery.record import record, training_pass
from syncbn.policy.freeze import settle_frozen
from syncbn.policy.layers import is_norm, refuse_wrapped
from syncbn.policy.pruning.flow import Axis, Flow
from syncbn.policy.pruning.proof import PruningProof
from syncbn.policy.pruning.rules import rule_for
from syncbn.policy.pruning.shrink import Removal
from syncbn.policy.pruning.unreached import unreached


@dataclass(frozen=True)
class Cost:
    """Cost of a network: operations of a forward pass (multiplications and additions), and parameters."""

    flops: int
    parameters: int


@dataclass(frozen=True)
class Pruning:
    """Plan for the channels of one batch normalization layer.

    Attributes:
        layer: its name in the model.
        channels: number of channels.
        removed: indices of the channels to remove.
        held: channels that must stay, each with the operation that holds it.
    """

    layer: str
    channels: int
    removed: tuple[int, ...]
    held: dict[int, str] = field(default_factory=dict)


def prune(model: nn.Module, ratio: float, example_input: Example, *, forward: Forward | None = None) -> nn.Module:
    """Copy `model` without the channels that have the smallest batch norm scales |γ|.

    Channels of all layers are compared with each other. A channel that several layers share, through a residual sum, a
    depthwise convolution or a concatenation, is removed from all of them or none, by its largest |γ|. All parameters
    and buffers with the channel shrink: convolutions (grouped ones lose whole groups, or the same channels of each),
    linear layers, norms, scales. `plan_prune` lists the channels to remove, and what holds others: the output; an
    operation that mixes channels, such as a softmax, or an unknown one; a constant that γ and β of 0 leave behind, such
    as sigmoid(0); the last channel of a layer. `cost_of` measures the gain. Train the result further, with a new
    optimizer.

    The result is proved, on a float64 copy with other γ, β and statistics, on the example and on random numbers: it
    equals the original with a 0/1 mask right before each weight that loses columns, and the original in which only γ
    and β of the removed channels are set to 0. Modules that the example doesn't reach keep their sizes; a warning names
    them.

    Train with `syncbn.training.NormL1` first, so that scales of unneeded channels go to 0.

    Args:
        model: any model with batch normalization layers that have a scale; it isn't changed.
        ratio: share of the removable channels to remove; at least 0 and below 1.
        example_input: input of the forward pass that finds dependencies. A tuple is the model's positional arguments, a
            dict its keywords, anything else its argument.
        forward: function that calls the model, `forward(model, example_input)`, if that isn't enough.

    Raises:
        ValueError: a ratio out of range, or no channel that could be removed; the model is wrapped, compiled or
            scripted, or has no values yet; the proof fails.
        TypeError: `example_input` isn't what the model takes.

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017,
    https://arxiv.org/abs/1708.06519.
    """
    with outside_of_modes():
        removal, _ = _decided(model, ratio, example_input, forward)
        pruned = copied(model)
        settle_frozen(pruned)
        removal.shrink(pruned)
        settle_frozen(pruned)  # frozen statistics have shrunk, too
    if left := unreached(model, removal.flow.graphs):
        warnings.warn(
            f"example_input doesn't reach {', '.join(left)}: their sizes stay, and they fail later if they take "
            "channels that are gone. Give an example that reaches them, or remove them",
            stacklevel=2,
        )
    return pruned


def plan_prune(
    model: nn.Module, ratio: float, example_input: Example, *, forward: Forward | None = None
) -> list[Pruning]:
    """Plan what `prune` would do with the channels of each batch normalization layer, in module order.

    Arguments and errors are those of `prune`, but a model without removable channels has a plan, too.
    """
    with outside_of_modes():
        removal, norms = _decided(model, ratio, example_input, forward, even_none=True)
    channels, plan = removal.flow.channels, []
    for name, labels in norms.items():
        gone = {place for place, label in enumerate(labels) if channels.root(label) in removal.roots}
        held = {place: channels.reason(label) for place, label in enumerate(labels)}
        plan.append(
            Pruning(name, len(labels), tuple(sorted(gone)), {i: why for i, why in held.items() if why is not None})
        )
    return plan


def cost_of(model: nn.Module, example_input: Example, *, forward: Forward | None = None) -> Cost:
    """Count floating-point operations of one forward pass in evaluation, and parameters."""
    check_given(locals())
    counter = FlopCounterMode(display=False)
    with modes_kept(model), torch.no_grad(), counter:
        run(model.eval(), copied_example(example_input), forward)
    return Cost(counter.get_total_flops(), sum(parameter.numel() for parameter in model.parameters()))


def _decided(
    model: nn.Module, ratio: float, example_input: Example, forward: Forward | None, even_none: bool = False
) -> tuple[Removal, dict[str, tuple[int, ...]]]:
    """Decide on the channels to remove, with proof; returns them and those of each norm."""
    check_given(locals())
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must be at least 0 and below 1, got {ratio}")
    refuse_wrapped(model, "prune")
    graphs = _graphs(model, example_input, forward)
    flow = _flow(model, graphs)
    proof: PruningProof | None = None
    while True:
        norms = _norms(model, flow)
        removed = _smallest(model, flow, norms, ratio, even_none)
        removal = Removal(flow, removed)
        if not removed:
            return removal, norms
        if proof is None:
            proof = PruningProof(model, graphs, example_input, forward)
        fault = proof.fault(removal)
        if fault is None:
            return removal, norms
        about = fault.labels
        if not removed & {flow.channels.root(label) for label in about}:
            about = _halved(proof, flow, removed, norms)
        if not about:
            raise ValueError(f"pruning would change what this model computes: {fault.reason}; it is unchanged")
        flow.channels.hold(about, fault.reason)


def _graphs(model: nn.Module, example_input: Example, forward: Forward | None) -> list[Graph]:
    """Record a pass in evaluation and, where only that runs all modules, one in training mode if possible."""
    graph = record(model, example_input, forward)
    called = {call.module for call in graph.calls}
    if all(module in called for module in model.modules() if module._parameters or module._buffers):
        return [graph]
    return [graph, *training_pass(model, example_input, forward)]


def _flow(model: nn.Module, graphs: list[Graph]) -> Flow:
    norms = {name: module for name, module in model.named_modules() if is_norm(module)}
    zeros = [f"{name}.{part}" for name, norm in norms.items() if is_per_channel(norm) for part in ("weight", "bias")]
    whole = [
        f"{name}.{part}"
        for name, norm in norms.items()
        if not is_per_channel(norm) and not isinstance(norm, compat.INSTANCE_NORMS)
        for part, _ in (*norm.named_parameters(), *norm.named_buffers())
    ]
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # parameters that can't be replaced
            whole += [f"{name}.{part}" for part, _ in (*module.named_parameters(), *module.named_buffers())]
    flow = Flow(rule_for, (name.removeprefix(".") for name in zeros), (name.removeprefix(".") for name in whole))
    flow.follow(graphs[0])
    if len(graphs) > 1:
        called = {call.name for call in graphs[0].calls}
        flow.follow(graphs[1], only={call.name for call in graphs[1].calls} - called)
    return flow


def _norms(model: nn.Module, flow: Flow) -> dict[str, tuple[int, ...]]:
    """Channels of each norm with a scale."""
    first_name = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    found = {}
    for name, layer in model.named_modules():
        if is_per_channel(layer) and isinstance(layer.weight, Tensor):
            labels = flow.axes.get(Axis(first_name.get(id(layer.weight), ""), 0))
            if labels is not None:
                found[name] = labels
    return found


def _smallest(
    model: nn.Module, flow: Flow, norms: dict[str, tuple[int, ...]], ratio: float, even_none: bool
) -> set[int]:
    """Select the channels to remove."""
    root = flow.channels.root
    scales: dict[int, float] = {}
    for name, labels in norms.items():
        layer: Any = model.get_submodule(name)
        if not layer.weight.isfinite().all():
            raise ValueError(
                f"{name or 'the model'} has scales that aren't finite, which can't be compared: look at them"
            )
        for label, scale in zip(labels, layer.weight.detach().abs().tolist(), strict=True):
            scales[root(label)] = max(scale, scales.get(root(label), 0.0))
    candidates = sorted((label for label in scales if label != 0), key=lambda label: scales[label])
    if not candidates and not even_none:
        raise ValueError(
            "no channel can be removed: the model has no batch norm with a scale between layers that are understood; "
            "syncbn.plan_prune names what holds each channel"
        )
    left = {axis: {root(label) for label in labels} for axis, labels in flow.axes.items()}
    axes_of: dict[int, list[Axis]] = {}
    for axis, roots in left.items():
        for label in roots:
            axes_of.setdefault(label, []).append(axis)
    removed: set[int] = set()
    for label in candidates:
        if len(removed) >= int(ratio * len(candidates)):
            break
        if all(len(left[axis]) > 1 for axis in axes_of[label]):
            removed.add(label)
            for axis in axes_of[label]:
                left[axis].discard(label)
    return removed


def _halved(proof: PruningProof, flow: Flow, removed: set[int], norms: dict[str, tuple[int, ...]]) -> set[int]:
    """Find by bisection the channels of one norm that cause a fault; none if it needs those of several norms.

    A number that the model derives from a shape, such as the square root of the number of channels, shows only where
    it is used.
    """
    layers = [labels for labels in norms.values() if removed & set(map(flow.channels.root, labels))]
    while len(layers) > 1:
        halves = layers[: len(layers) // 2], layers[len(layers) // 2 :]
        layers = next((half for half in halves if proof.fault(Removal(flow, _of(flow, removed, half)))), [])
    return set(layers[0]) if layers and proof.fault(Removal(flow, _of(flow, removed, layers))) else set()


def _of(flow: Flow, removed: set[int], layers: list[tuple[int, ...]]) -> set[int]:
    return removed & {flow.channels.root(label) for labels in layers for label in labels}
