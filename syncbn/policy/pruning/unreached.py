"""Modules that no recorded pass reached."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from syncbn.norm.surgery.graph import Graph


def unreached(model: nn.Module, graphs: Iterable[Graph]) -> list[str]:
    """Outermost modules with parameters of which no operation read one."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    read = set()
    for graph in graphs:
        storages = {view.storage for operation in graph.operations for view in operation.reads}
        names = (name for storage in storages for named in graph.named.get(storage, []) for name in named.names)
        read |= {id(parameters[name]) for name in names if name in parameters}
    found: list[str] = []
    for name, module in model.named_modules():
        mine = {id(parameter) for parameter in module.parameters()}
        if mine and not mine & read and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found
