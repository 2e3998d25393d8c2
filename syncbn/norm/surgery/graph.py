"""What a network computes: operations in order, over tensors that are known by the memory they lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn

Function = Callable[..., Any]


class View(NamedTuple):
    """A tensor as a part of a storage; tensors that share memory have the same `storage`.

    Attributes:
        storage: a number for the memory, in the order of appearance.
        shape: of the tensor, as are `strides` and `offset`, counted in elements.
        strides: empty where there is no memory to look at (a symbolic trace, a sparse tensor).
        offset: of the first element.
        dtype: None in a symbolic trace.
    """

    storage: int
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    offset: int = 0
    dtype: torch.dtype | None = None


class Named(NamedTuple):
    """A parameter or buffer: its names, several where it is tied, and where it lies."""

    names: tuple[str, ...]
    view: View


@dataclass(eq=False, slots=True)
class Call:
    """One call of a module.

    Attributes:
        module: the module of the model itself, whether or not a copy was run.
        name: its first name in the model, or its class for a module that isn't in the model.
        index: how often it had been called before.
        start: the number of the first operation in it; `stop` is that of the first one after it.
        inputs: the tensors among its arguments; `outputs` are those it returned, before hooks of its own.
    """

    module: nn.Module
    name: str
    index: int
    start: int
    stop: int = -1
    inputs: tuple[View, ...] = ()
    outputs: tuple[View, ...] = ()

    def holds(self, operation: Operation) -> bool:
        """Whether an operation ran inside."""
        return self.start <= operation.index < self.stop


@dataclass(eq=False, slots=True)
class Operation:
    """One operation on tensors.

    Attributes:
        index: its number.
        op: the operator of `torch.ops`; None where a function ran none (`Tensor.numpy`, `dropout` in evaluation) and in
            a symbolic trace.
        function: the torch function that was called in Python, the outermost one; None inside TorchScript and C++. In a
            symbolic trace, the function or module of the node.
        args: with a `View` in the place of each tensor, as are `kwargs`.
        reads: every tensor among the arguments.
        writes: those of them that it writes to.
        outputs: every tensor that it returned.
        calls: the calls of modules that were running, outermost first.
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
        """Whether it only looks at the memory of its argument in another way: `view`, `transpose`, `detach`."""
        mine = {view.storage for view in self.reads}
        return bool(self.outputs) and not self.writes and all(view.storage in mine for view in self.outputs)

    @property
    def kind(self) -> str:
        """The name of the operator, `convolution` or `add_`, or of the function."""
        if self.op is not None:
            return str(self.op.overloadpacket.__name__)
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def place(self) -> str:
        """The name of the innermost module that ran it, for messages."""
        return self.calls[-1].name if self.calls else ""

    def __str__(self) -> str:
        return f"{self.kind}{f' in {self.place}' if self.place else ''}"


@dataclass
class Graph:
    """One forward pass, or a symbolic one.

    Attributes:
        operations: in order.
        calls: of modules, in the order in which they began.
        named: parameters and buffers, by storage.
        kept: storages that somebody holds at the end: what the model returned, and what it or a hook put aside.
        unseen: storages whose content nobody saw computed, with the number of the operation that met them first: they
            may derive from everything before it.
    """

    operations: list[Operation] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    named: dict[int, list[Named]] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)
    unseen: dict[int, int] = field(default_factory=dict)

    def calls_of(self, module: nn.Module) -> list[Call]:
        """The calls of a module."""
        return [call for call in self.calls if call.module is module]

    def touching(self, storage: int) -> list[Operation]:
        """Every operation that makes, reads or writes the content of a storage."""
        return self._touching.get(storage, [])

    def makers(self, storage: int, before: int) -> list[Operation]:
        """The operations that made what is in a storage when operation `before` begins; empty where it was there."""
        return [
            op
            for op in self.touching(storage)
            if op.index < before and any(view.storage == storage for view in (*op.outputs, *op.writes))
        ]

    def giver(self, view: View, before: int) -> Operation | None:
        """The last operation before `before` that returned this very tensor; None for one that was there already."""
        return next((op for op in reversed(self.operations[:before]) if view in op.outputs), None)

    def returned_by(self, operation: Operation, view: View) -> Call | None:
        """The innermost module that returned what an operation in it made, as it was."""
        return next((call for call in reversed(operation.calls) if view in call.outputs), None)

    def parameter(self, view: View) -> Named | None:
        """The parameter or buffer that a tensor is, or is a part or another view of."""
        candidates = self.named.get(view.storage, [])
        inside = [named for named in candidates if _covers(named.view, view)]
        return inside[0] if inside else (candidates[0] if candidates else None)

    def uses_of(self, named: Named) -> list[Operation]:
        """The operations that read or write a parameter or buffer."""
        return [
            op for op in self.touching(named.view.storage) if any(self.parameter(view) is named for view in op.reads)
        ]

    def is_written(self, named: Named) -> bool:
        """Whether the forward pass changes a parameter or buffer."""
        return any(view.storage == named.view.storage for op in self.uses_of(named) for view in op.writes)

    def has_unseen_after(self, index: int) -> bool:
        """Whether a tensor of unknown origin may have come from what operation `index` returned."""
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
    """Whether two tensors are the same elements, in the same order or transposed."""
    return (view.storage, view.offset) == (of.storage, of.offset) and _extents(view) == _extents(of)


def _extents(view: View) -> list[tuple[int, int]]:
    return sorted((stride, size) for stride, size in zip(view.strides, view.shape, strict=False) if size != 1)


def _covers(outer: View, inner: View) -> bool:
    return outer.offset <= inner.offset and _end(inner) <= _end(outer)


def _end(view: View) -> int:
    return view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=False))


def storages(views: Iterable[View]) -> set[int]:
    """The storages of some tensors."""
    return {view.storage for view in views}
