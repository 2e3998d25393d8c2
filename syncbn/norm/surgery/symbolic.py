"""Symbolic trace of a model by `torch.fx`, without an input, as a `Graph`."""

from __future__ import annotations

import operator
from collections.abc import Container
from typing import Any

import torch.fx
from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.registry import registered_layers
from syncbn.norm.surgery.adapters import looks_like_batch_norm
from syncbn.norm.surgery.graph import Call, Graph, Operation, View

_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def symbolic(model: nn.Module, leaves: Container[nn.Module] = ()) -> Graph:
    """Trace a `model` whose control flow doesn't depend on the values or shapes of tensors.

    Each of torch's modules and this package's norms is one operation. Tensors have no shape, and a view is a new
    tensor.

    Args:
        model: any model.
        leaves: additional modules to treat as one operation.

    Raises:
        ValueError: the model can't be traced.
    """
    try:
        traced = _Tracer(leaves).trace(model)
    except Exception as error:
        raise ValueError(f"can't trace this model ({error}): give an example_input") from error
    graph = Graph()
    numbers: dict[torch.fx.Node, int] = {}
    counts: dict[nn.Module, int] = {}

    def noted(value: Any) -> Any:
        return torch.fx.map_arg(value, lambda node: View(numbers[node]))

    for node in traced.nodes:
        if node.op == "output":
            graph.kept = {numbers[used] for used in node.all_input_nodes}
            continue
        first = node.args[0] if node.args else None
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        in_place = _works_in_place(node, module) and isinstance(first, torch.fx.Node)
        same = in_place or isinstance(module, nn.Identity)
        numbers[node] = numbers[first] if same else len(numbers)  # type: ignore[index]
        if not node.op.startswith("call_"):
            continue
        index = len(graph.operations)
        reads = tuple(View(numbers[used]) for used in node.all_input_nodes)
        outputs = (View(numbers[node]),)
        calls: tuple[Call, ...] = ()
        if module is not None:
            counts[module] = counts.get(module, -1) + 1
            stop = index if isinstance(module, nn.Identity) else index + 1
            calls = (Call(module, str(node.target), counts[module], index, stop, reads, outputs),)
            graph.calls += calls
            if isinstance(module, nn.Identity):
                continue
        function: Any = module if module is not None else node.target
        if node.op == "call_method":
            function = getattr(Tensor, str(node.target))
        writes = reads[:1] if in_place else ()
        graph.operations.append(
            Operation(index, None, function, noted(node.args), dict(noted(node.kwargs)), reads, writes, outputs, calls)
        )
    return graph


def _works_in_place(node: torch.fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    named_so = name.endswith("_") and not name.endswith("__")
    return named_so or node.target in _IN_PLACE or bool(node.kwargs.get("inplace"))


class _Tracer(torch.fx.Tracer):
    def __init__(self, leaves: Container[nn.Module]) -> None:
        super().__init__()
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_norm = looks_like_batch_norm(m) or isinstance(m, (*compat.NORMS, *registered_layers()))
        return is_norm or m in self._leaves or super().is_leaf_module(m, module_qualified_name)
