"""Computation graph of a network: operations in order, over tensors identified by their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn

Function = Callable[..., Any]


class View(NamedTuple):
    """A tensor as a view of a storage; tensors that share memory have the same `storage`.

    Attributes:
        storage: number of the storage, in order of appearance.
        shape: shape of the tensor.
        strides: strides in elements; empty without accessible memory (a symbolic trace, a sparse tensor).
        offset: offset of the first element, in elements.
        dtype: dtype; None in a symbolic trace.
    """

    storage: int
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    offset: int = 0
    dtype: torch.dtype | None = None


class Named(NamedTuple):
    """A parameter or buffer: its names, several if it is tied, and its view."""

    names: tuple[str, ...]
    view: View


@dataclass(eq=False, slots=True)
class Call:
    """One call of a module.

    Attributes:
        module: module of the model itself, even if a copy was run.
        name: its first name in the model, or the class of a module that isn't in the model.
        index: number of earlier calls.
        start: index of the first operation in it; `stop` is that of the first one after it.
        inputs: tensors among its arguments; `outputs` are those it returned, before its own hooks.
    """

    module: nn.Module
    name: str
    index: int
    start: int
    stop: int = -1
    inputs: tuple[View, ...] = ()
    outputs: tuple[View, ...] = ()

    def holds(self, operation: Operation) -> bool:
        """Whether an operation ran inside this call."""
        return self.start <= operation.index < self.stop


@dataclass(eq=False, slots=True)
class Operation:
    """One operation on tensors.

    Attributes:
        index: index of the operation.
        op: operator of `torch.ops`; None if a function ran none (`Tensor.numpy`, `dropout` in evaluation) and in a
            symbolic trace.
        function: outermost torch function called in Python; None inside TorchScript and C++. In a symbolic trace, the
            function or module of the node.
        args: arguments with a `View` for each tensor; likewise `kwargs`.
        reads: all tensors among the arguments.
        writes: arguments that it writes to.
        outputs: all returned tensors.
        calls: active module calls, outermost first.
    """

    index: int
    op: Any
    function: Function | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: tuple[View, ...]
    writes: tuple[View, ...]
    outputs: tuple[View, ...]
    calls: tuple[Call, ...]

    @property
    def is_geometry(self) -> bool:
        """Whether it only makes a view of its argument: `view`, `transpose`, `detach`."""
        mine = {view.storage for view in self.reads}
        return bool(self.outputs) and not self.writes and all(view.storage in mine for view in self.outputs)

    @property
    def kind(self) -> str:
        """Name of the operator, such as `convolution` or `add_`, or of the function."""
        if self.op is not None:
            return str(self.op.overloadpacket.__name__)
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def place(self) -> str:
        """Name of the innermost module that ran it, for messages."""
        return self.calls[-1].name if self.calls else ""

    def __str__(self) -> str:
        return f"{self.kind}{f' in {self.place}' if self.place else ''}"


@dataclass
class Graph:
    """Graph of one forward pass, recorded or symbolic.

    Attributes:
        operations: operations in order.
        calls: module calls, in order of their start.
        named: parameters and buffers, by storage.
        kept: storages still alive at the end: returned by the model, or stored by it or a hook.
        unseen: storages of unknown origin, with the index of the operation that used them first: they may depend on
            everything before it.
    """

    operations: list[Operation] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    named: dict[int, list[Named]] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)
    unseen: dict[int, int] = field(default_factory=dict)

    def calls_of(self, module: nn.Module) -> list[Call]:
        """Calls of a module."""
        return [call for call in self.calls if call.module is module]

    def touching(self, storage: int) -> list[Operation]:
        """Operations that create, read or write a storage."""
        return self._touching.get(storage, [])

    def makers(self, storage: int, before: int) -> list[Operation]:
        """Operations that made a storage's content before operation `before`; empty if it existed from the start."""
        return [
            op
            for op in self.touching(storage)
            if op.index < before and any(view.storage == storage for view in (*op.outputs, *op.writes))
        ]

    def giver(self, view: View, before: int) -> Operation | None:
        """Last operation before `before` that returned exactly this tensor; None if it existed from the start."""
        return next((op for op in reversed(self.operations[:before]) if view in op.outputs), None)

    def returned_by(self, operation: Operation, view: View) -> Call | None:
        """Innermost module call that returned an operation's output unchanged."""
        return next((call for call in reversed(operation.calls) if view in call.outputs), None)

    def parameter(self, view: View) -> Named | None:
        """Parameter or buffer that a tensor is, or is a view of."""
        candidates = self.named.get(view.storage, [])
        inside = [named for named in candidates if _covers(named.view, view)]
        return inside[0] if inside else (candidates[0] if candidates else None)

    def uses_of(self, named: Named) -> list[Operation]:
        """Operations that read or write a parameter or buffer."""
        return [
            op for op in self.touching(named.view.storage) if any(self.parameter(view) is named for view in op.reads)
        ]

    def is_written(self, named: Named) -> bool:
        """Whether the forward pass changes a parameter or buffer."""
        return any(view.storage == named.view.storage for op in self.uses_of(named) for view in op.writes)

    def has_unseen_after(self, index: int) -> bool:
        """Whether a tensor of unknown origin may depend on the output of operation `index`."""
        return any(first > index for first in self.unseen.values())

    @cached_property
    def _touching(self) -> dict[int, list[Operation]]:
        found: dict[int, list[Operation]] = {}
        for op in self.operations:
            if not op.is_geometry:
                for storage in {view.storage for view in (*op.reads, *op.outputs)}:
                    found.setdefault(storage, []).append(op)
        return found


def is_whole(view: View, of: View) -> bool:
    """Whether two tensors have the same elements, in the same order or transposed."""
    return (view.storage, view.offset) == (of.storage, of.offset) and _extents(view) == _extents(of)


def _extents(view: View) -> list[tuple[int, int]]:
    return sorted((stride, size) for stride, size in zip(view.strides, view.shape, strict=False) if size != 1)


def _covers(outer: View, inner: View) -> bool:
    return outer.offset <= inner.offset and _end(inner) <= _end(outer)


def _end(view: View) -> int:
    return view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=False))


def storages(views: Iterable[View]) -> set[int]:
    """Storages of tensors."""
    return {view.storage for view in views}
