"""Finding the convolution that feeds a normalization layer, for norms that use its weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from syncbn.norm.core import compat
from syncbn.norm.core.attachable import FEEDERS, Attachable
from syncbn.norm.surgery.forward import Example, Forward
from syncbn.norm.surgery.graph import Call, Graph, Operation, View
from syncbn.norm.surgery.overlap import overlap_messages
from syncbn.norm.surgery.record import record, training_pass
from syncbn.norm.surgery.symbolic import symbolic


def attach_norms(
    model: nn.Module, example_input: Example | None = None, forward: Forward | None = None
) -> dict[str, str]:
    """Attach to each layer of `model` that needs it the preceding convolution, by `layer.attach(conv)`.

    The feeders are found in a symbolic trace (`torch.fx`) or, given `example_input`, in a forward pass, which also
    works for models that can't be traced: one in training mode, since they are needed there, and in evaluation for what
    training doesn't call or can't run. A layer is attached if its input is the output of one convolution or linear
    module, and both are called once in a forward pass.

    Norms with `overlap=True` get to know the layers after them (`syncbn.norm.surgery.overlap.overlap_messages`).

    Args:
        model: a model; layers without an `attach` method, layers already attached, and `model` itself are skipped.
        example_input: for forward passes; a tuple is the model's positional arguments, a dict its keywords.
        forward: how to call the model instead, `forward(model, example_input)`.

    Returns:
        Layers that couldn't be attached, by name, each with the reason. `layer.without_feeder(reason)` is called for
        them, and a warning lists them.

    Raises:
        ValueError: a layer that requires a feeder (one without `without_feeder`) has none; the model can't be traced.
    """
    overlap_messages(model, example_input, forward)
    waiting: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if name and isinstance(module, Attachable) and not module.is_attached
    }
    if not waiting:
        return {}
    graphs = (
        [_by_trace(model)] if example_input is None else _passes(model, list(waiting.values()), example_input, forward)
    )
    feeders = {
        name: _feeder(module, next((graph for graph in graphs if graph.calls_of(module)), graphs[-1]))
        for name, module in waiting.items()
    }
    reasons = {name: feeder for name, feeder in feeders.items() if isinstance(feeder, str)}
    for name, reason in reasons.items():
        if not hasattr(waiting[name], "without_feeder"):
            raise ValueError(f"{name} needs the convolution before it, but {reason}; exclude it")
    for name, feeder in feeders.items():
        if isinstance(feeder, str):
            waiting[name].without_feeder(feeder)
        else:
            waiting[name].attach(feeder)
    if reasons:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        warnings.warn(f"{len(reasons)} of {len(waiting)} layers go without a convolution: {listed}", stacklevel=3)
    return reasons


def _by_trace(model: nn.Module) -> Graph:
    try:
        return symbolic(model)
    except ValueError as error:
        raise ValueError(f"{error}; or call layer.attach(conv) yourself") from error


def _passes(model: nn.Module, norms: list[nn.Module], example_input: Example, forward: Forward | None) -> list[Graph]:
    """Record a pass in training mode if possible, and one in evaluation unless that called all of `norms`."""
    training = training_pass(model, example_input, forward)
    if training and all(training[0].calls_of(norm) for norm in norms):
        return training
    return [*training, record(model, example_input, forward)]


def _feeder(norm: nn.Module, graph: Graph) -> nn.Module | str:
    """Find the module that feeds `norm`, or the reason why there is none."""
    calls = graph.calls_of(norm)
    if len(calls) != 1:
        return f"it is called {len(calls)} times in a forward pass"
    (call,) = calls
    if not call.inputs:
        return "its input isn't a tensor"
    giver = graph.giver(call.inputs[0], call.start)
    if giver is None:
        return "its input comes from the model's input, which is no module's output"
    source = graph.returned_by(giver, call.inputs[0])
    if source is None:
        return f"its input comes from {giver.kind}(), which is no module's output"
    feeder = source.module
    kind = type(feeder).__name__
    if not isinstance(feeder, FEEDERS):
        return f"its input comes from a {kind}"
    times = len(graph.calls_of(feeder))
    if times != 1:
        return f"the {kind} before it is called {times} times in a forward pass"
    if compat.runs_own_code(feeder):
        return f"the {kind} before it has a forward of its own"
    return feeder


class Feeding(NamedTuple):
    """The layer whose output a norm normalizes.

    Attributes:
        call: its only call.
        operation: its convolution or product.
        after: operations between that and the norm: the addition of its bias where that is one of its own, copies.
    """

    call: Call
    operation: Operation
    after: tuple[Operation, ...]

    @property
    def parameters(self) -> dict[str, tuple[Any, Operation]]:
        """Weight and bias as the operation that reads them has them; not a tensor if there is none."""
        weight, bias = _WEIGHTS[self.operation.kind](self.operation.args)
        by = self.operation
        for op in self.after:
            if op.kind == "add":
                bias, by = op.args[1], op
        return {"weight": (weight, self.operation), "bias": (bias, by)}


def layer_before(graph: Graph, call: Call) -> Feeding | str:
    """Find the convolution or linear layer whose output is a norm's input, channel by channel; or why there is none.

    Args:
        graph: graph of a forward pass, not symbolic.
        call: call of the norm.

    Returns:
        The layer, or the reason.
    """
    view, after = call.inputs[0], list[Operation]()
    makers = graph.makers(view.storage, call.start)
    while len(makers) == 1 and (source := _source(graph, makers[0], view)) is not None:
        view, after = source, [makers[0], *after]
        makers = graph.makers(view.storage, makers[0].index)
    if len(makers) != 1 or makers[0].kind not in _WEIGHTS:
        what = f": {makers[-1]} made it" if makers else ""
        return f"its input isn't the output of a convolution or linear layer{what}"
    (operation,) = makers
    caller = next((c for c in reversed(operation.calls) if isinstance(c.module, FEEDERS)), None)
    added = [op for op in after if op.kind == "add"]
    if caller is None or not all(operation.kind == "mm" and caller.holds(op) for op in added):
        return f"its input isn't the output of a convolution or linear layer, but of {operation}, outside of one"
    kind = type(caller.module).__name__
    if (times := len(graph.calls_of(caller.module))) != 1:
        return f"the {kind} before it is called {times} times in a forward pass"
    if not _is_along_channels(view, operation.outputs[0]):
        return f"it normalizes another dimension than the channels of the {kind} before it"
    return Feeding(caller, operation, tuple(after))


def other_use(graph: Graph, feeding: Feeding, call: Call) -> str | None:
    """Find another use of the output of a norm's preceding layer; None if only the norm uses it."""
    known = (feeding.operation, *feeding.after)
    made = [op.outputs[0].storage for op in known]
    others = [op for storage in made for op in graph.touching(storage) if op not in known and not call.holds(op)]
    where = f"the output of the {type(feeding.call.module).__name__} before it is used elsewhere too"
    if others:
        return f"{where}: by {others[0]}"
    if graph.kept.intersection(made):
        return f"{where}: the model returns it, or keeps it"
    if graph.has_unseen_after(feeding.operation.index):
        return f"{where}, perhaps: by what made a tensor of unknown origin"
    return None


def _source(graph: Graph, operation: Operation, view: View) -> View | None:
    """What a view of a copy, or of a sum with a bias, has of the tensor before; None of another operation's output."""
    if operation.kind == "add":  # torch.nn.Linear adds its bias so, where its input isn't contiguous
        bias = operation.args[1]
        named = graph.parameter(bias) if isinstance(bias, View) and len(bias.shape) == 1 else None
        if named is None or set(operation.kwargs.values()) > {1} or not isinstance(operation.args[0], View):
            return None
    elif operation.kind != "clone":
        return None
    source, output = operation.reads[0], operation.outputs[0]
    if (source.shape, source.strides) == (output.shape, output.strides):
        return view._replace(storage=source.storage, offset=view.offset - output.offset + source.offset)
    return source if view == output else None


def _is_along_channels(input: View, output: View) -> bool:
    """Whether dimension 1 of a norm's input, which may be a view, is the preceding layer's output channels."""
    if (input.shape, input.strides, input.offset) == (output.shape, output.strides, output.offset):
        return True
    channels, stride = output.shape[1], output.strides[1]
    if input.offset != output.offset or input.shape[1:2] != (channels,) or input.strides[1] != stride:
        return False
    others = [(n, s) for i, (n, s) in enumerate(zip(input.shape, input.strides, strict=True)) if i != 1 and n > 1]
    within = sum((n - 1) * s for n, s in others if s < stride)
    apart = all(s % (stride * channels) == 0 and s > 0 for _, s in others if s >= stride)
    return within < stride and apart and math.prod(input.shape) == math.prod(output.shape)


# Positions of weight and bias in the arguments of convolution and linear operators.
_WEIGHTS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "convolution": lambda args: (args[1], args[2]),
    "addmm": lambda args: (args[2], args[0]),
    "mm": lambda args: (args[1], None),
    "linear": lambda args: (args[1], args[2] if len(args) > 2 else None),
}
