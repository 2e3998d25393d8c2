"""Finding norms that can be fused with the activation after them."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from torch import nn

from syncbn.norm.core import compat
from syncbn.norm.fusion.deferred import SUM, slope_of
from syncbn.norm.surgery.forward import Example, Forward
from syncbn.norm.surgery.graph import Graph, Operation, View
from syncbn.norm.surgery.record import record
from syncbn.norm.surgery.symbolic import symbolic

_SUMS = {*SUM, operator.add, operator.iadd}


def activations_after(
    model: nn.Module,
    norms: Iterable[nn.Module],
    example_input: Example | None = None,
    forward: Forward | None = None,
) -> dict[nn.Module, float | str]:
    """Find the slope of the ReLU (0) or LeakyReLU after each norm, or the reason why they can't be fused.

    They can be fused if the norm is called once, and its output is used only by the activation, or only by a sum with
    another tensor that is used only by the activation. No hook may see the tensors between them.

    Args:
        model: a model, traced symbolically (`torch.fx`) or, given `example_input`, run once in evaluation mode.
        norms: norm modules of the model.
        example_input: for one forward pass; a tuple is the model's positional arguments, a dict its keywords.
        forward: how to call the model instead, `forward(model, example_input)`.

    Raises:
        ValueError: the model can't be traced.
    """
    norms = list(norms)
    if model in norms:
        return dict.fromkeys(norms, "it is the model")
    graph = symbolic(model, norms) if example_input is None else record(model, example_input, forward)
    return {norm: _activation_after(norm, graph) for norm in norms}


def _activation_after(norm: nn.Module, graph: Graph) -> float | str:
    calls = graph.calls_of(norm)
    if len(calls) != 1:
        return f"it is called {len(calls)} times in a forward pass"
    if compat.has_output_hooks(norm):
        return "it has hooks that see its output"
    if len(calls[0].outputs) != 1:
        return "its output isn't a tensor"
    (value,) = calls[0].outputs
    use = _only_use(value, calls[0].stop, graph)
    if isinstance(use, Operation) and use.function in _SUMS and _is_sum_of_two(use):
        use = _only_use(use.outputs[0], use.index + 1, graph)
    if isinstance(use, str):
        return use
    module = use.calls[-1].module if use.calls else None
    slope = _slope(use, module)
    if slope is None:
        kind = getattr(use.function, "__name__", use.kind if use.function is None else type(use.function).__name__)
        return f"its output goes into {kind}, which isn't ReLU or LeakyReLU"
    if module is not None and type(module) in (nn.ReLU, nn.LeakyReLU) and compat.has_hooks(module):
        return f"the {type(module).__name__} after it has hooks"
    return slope


def _only_use(value: View, start: int, graph: Graph) -> Operation | str:
    """Only use of a tensor, if there is just one; in-place operations make another tensor of it."""
    uses = [op for op in graph.operations[start:] if any(view.storage == value.storage for view in op.reads)]
    if uses and value in uses[0].writes and value in uses[0].outputs:
        return uses[0]
    written = next((place for place, op in enumerate(uses) if value in op.writes), len(uses))
    uses = uses[: written + 1]  # later uses see the new content
    if value.storage in graph.kept:
        return "the model returns its output, or keeps it"
    if graph.has_unseen_after(start - 1):
        return "it can't be seen what else uses its output"
    return uses[0] if len(uses) == 1 else f"its output is used {len(uses)} times"


def _slope(use: Operation, module: nn.Module | None) -> float | None:
    if use.function is not None and use.function is module:  # in a symbolic trace
        slopes: dict[type[nn.Module], Any] = {nn.ReLU: 0.0, nn.LeakyReLU: getattr(module, "negative_slope", None)}
        slope = slopes.get(type(module))
        return slope if slope is not None and slope >= 0 else None
    return None if use.function is None else slope_of(use.function, use.args, use.kwargs)


def _is_sum_of_two(use: Operation) -> bool:
    given = [*use.args, *use.kwargs.values()]
    if use.op is not None:  # aten.add.Tensor(a, b, *, alpha=1)
        return len(use.args) == 2 and use.kwargs.get("alpha", 1) == 1 and _two_tensors(use.args)
    return len(given) == 2 and _two_tensors(given)


def _two_tensors(given: Any) -> bool:
    return all(isinstance(value, View) for value in given) and given[0] != given[1]
