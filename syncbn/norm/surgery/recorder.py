"""Recorder that writes the events of a forward pass to a `Graph`, without keeping its tensors alive."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.surgery.forward import tensors_in
from syncbn.norm.surgery.graph import Call, Function, Graph, Named, Operation, View, storages

Observer = Callable[[Operation, list[Tensor]], None]

# Operators whose argument was just created from Python numbers.
_LITERALS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)

# Operators that update running statistics in training, which isn't in their schema.
_TRAINED = (torch.ops.aten.native_batch_norm.default, torch.ops.aten.cudnn_batch_norm.default)


class Recorder:
    """Receives the events of a forward pass and writes them to a graph."""

    def __init__(
        self, model: nn.Module, originals: dict[nn.Module, nn.Module], graph: Graph, watch: Observer | None
    ) -> None:
        """Begin.

        Args:
            model: model that will run.
            originals: module to record for each module of it.
            graph: graph to write to.
            watch: callback for each operation.
        """
        self.graph = graph
        self.function: Function | None = None  # running function that was called in Python
        self._watch = watch
        self._originals = originals
        self._names = {module: name for name, module in model.named_modules()}
        self._refs: list[Any] = []  # by storage number; a tensor itself if it has no storage
        self._numbers: dict[int, int] = {}  # storage numbers by identity
        self._computed: set[int] = set()
        self._mine: set[int] = set()  # copies, which may be written to
        self._firsts: dict[int, tuple[View, Tensor]] = {}  # unseen tensors with their content at first use
        self._before: list[tuple[Tensor, Tensor]] = []  # written tensors from outside the pass, with old content
        self._running: tuple[Call, ...] = ()
        self._counts: dict[nn.Module, int] = {}
        self._thread = threading.get_ident()  # global hooks also see modules of other threads
        self._know_state(model)

    def know(self, tensors: Iterable[Tensor]) -> None:
        """Mark tensors as known."""
        self._mine |= storages(map(self.view, tensors))

    def _know_state(self, model: nn.Module) -> None:
        names: dict[int, list[str]] = {}
        tensors: dict[int, Tensor] = {}
        for of in (model.named_parameters, model.named_buffers):
            for name, tensor in of(remove_duplicate=False):
                names.setdefault(id(tensor), []).append(name)
                tensors[id(tensor)] = tensor
        for key, tensor in tensors.items():
            view = self.view(tensor)
            self.graph.named.setdefault(view.storage, []).append(Named(tuple(names[key]), view))
        plain = (t for module in model.modules() for value in vars(module).values() for t in _in_containers(value))
        self._given = storages(map(self.view, plain))

    # --- tensors ----------------------------------------------------------------------------------------------------

    def view(self, tensor: Tensor) -> View:
        """View of a tensor's memory."""
        with compat.no_torch_functions():
            key = compat.storage_key(tensor)
            number = self._numbers.get(id(tensor) if key is None else key)
            if number is None:
                number = self._number(tensor, key)
            if key is None:
                return View(number, tuple(tensor.shape), dtype=tensor.dtype)
            return View(number, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)

    def _number(self, tensor: Tensor, key: int | None) -> int:
        number = len(self._refs)
        self._numbers[id(tensor) if key is None else key] = number
        self._refs.append(tensor if key is None else compat.storage_ref(tensor))
        return number

    def _is_known(self, storage: int) -> bool:
        return any(
            storage in of for of in (self._computed, self._mine, self._given, self.graph.named, self.graph.unseen)
        )

    # --- operations -------------------------------------------------------------------------------------------------

    def begin(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Operation:
        """Record an operator that is about to run, with the tensors among its arguments."""
        views = {id(tensor): self.view(tensor) for tensor in tensors}
        reads = tuple(views[id(tensor)] for tensor in tensors)
        written = _written(op, args, kwargs)
        index = len(self.graph.operations)
        for tensor, view in zip(tensors, reads, strict=True):
            if not self._is_known(view.storage):
                if op in _LITERALS:
                    self._given.add(view.storage)
                else:
                    self.graph.unseen[view.storage] = index
                    self._firsts[view.storage] = view, tensor.detach().clone()
        for tensor in written:
            if views[id(tensor)].storage not in self._computed | self._mine:
                self._before.append((tensor, tensor.detach().clone()))
        writes = tuple(views[id(tensor)] for tensor in written)
        args, kwargs = _noted(args, views), {key: _noted(value, views) for key, value in kwargs.items()}
        noted = Operation(index, op, self.function, args, kwargs, reads, writes, (), self._running)
        self.graph.operations.append(noted)
        return noted

    def end(self, noted: Operation, returned: list[Tensor]) -> None:
        """Record an operator's result."""
        noted.outputs = tuple(map(self.view, returned))
        self._computed |= storages(noted.outputs) - storages(noted.reads)
        if self._watch is not None:
            self._watch(noted, returned)

    def let_out(self, function: Function, tensors: list[Tensor]) -> None:
        """Record that tensors' content has left torch: it may be read and written from now on."""
        views = tuple(view for view in map(self.view, tensors) if self._is_known(view.storage))
        if views:
            self._add(function, views, writes=views)

    def pass_on(self, function: Function, given: list[Tensor], returned: Tensor) -> None:
        """Record a function that returned a tensor without calling an operator, such as a dropout in evaluation."""
        views, output = tuple(map(self.view, given)), self.view(returned)
        if views and all(self._is_known(view.storage) for view in (*views, output)):
            self._add(function, views, outputs=(output,))

    def _add(
        self, function: Function, views: tuple[View, ...], writes: tuple[View, ...] = (), outputs: tuple[View, ...] = ()
    ) -> None:
        index = len(self.graph.operations)
        self.graph.operations.append(Operation(index, None, function, views, {}, views, writes, outputs, self._running))

    # --- calls of modules -------------------------------------------------------------------------------------------

    def enter(self, module: nn.Module, args: Any) -> None:
        """Record the start of a module's call; a global hook."""
        if threading.get_ident() != self._thread:
            return
        name = self._names.get(module, type(module).__name__)
        index = self._counts[module] = self._counts.get(module, -1) + 1
        call = Call(self._originals.get(module, module), name, index, len(self.graph.operations))
        self.graph.calls.append(call)
        self._running = (*self._running, call)

    def leave(self, module: nn.Module, args: Any, *rest: Any) -> None:
        """Record the end of a module's call, or its exception; a global hook, with keyword arguments and the output."""
        kwargs, output = rest if len(rest) == 2 else ({}, None)  # if a module raises, torch passes no keywords
        if threading.get_ident() != self._thread:
            return
        mine = self._originals.get(module, module)
        while self._running:
            *others, call = self._running
            self._running = tuple(others)
            call.stop = len(self.graph.operations)
            if call.module is mine:
                call.inputs = tuple(map(self.view, tensors_in((args, kwargs))))
                call.outputs = tuple(map(self.view, tensors_in(output)))
                break

    # --- afterwards -------------------------------------------------------------------------------------------------

    def find_kept(self, output: Any) -> None:
        """Record which storages of the pass are alive while its result is."""
        returned = storages(map(self.view, tensors_in(output)))
        if not self._alive() <= returned:
            gc.collect()  # reference cycles
        self.graph.kept = self._alive() | returned

    def _alive(self) -> set[int]:
        return {number for number in self._computed if not _is_gone(self._refs[number])}

    def has_doubts(self) -> bool:
        """Whether an unseen tensor outlived the pass, and so may have existed before it."""
        return any(not _is_gone(self._refs[number]) for number in self.graph.unseen)

    def unchanged(self, tensor: Tensor) -> int | None:
        """Number of an unseen storage that is met again with the same content; None for all others."""
        key = compat.storage_key(tensor)
        number = None if key is None else self._numbers.get(key)
        if number not in self.graph.unseen or _is_gone(self._refs[number]):
            return None
        view, content = self._firsts[number]
        now = torch.empty(0, dtype=view.dtype, device=tensor.device)
        now.set_(tensor.untyped_storage(), view.offset, view.shape, view.strides)
        return number if torch.equal(now, content) else None

    def forget(self, numbers: Iterable[int]) -> None:
        """Mark unseen tensors as known."""
        for number in numbers:
            del self.graph.unseen[number]

    def undo_writes(self) -> None:
        """Restore the content of parameters and other tensors from outside this pass."""
        for tensor, content in reversed(self._before):
            tensor.copy_(content)


def tensors_among(values: Any) -> list[Tensor]:
    """Tensors among the arguments or results of an operator, including those in lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += tensors_among(value)
    return found


def _noted(value: Any, views: dict[int, View]) -> Any:
    if isinstance(value, Tensor):
        return views[id(value)]
    return tuple(_noted(item, views) for item in value) if isinstance(value, tuple | list) else value


def _written(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    if op in _TRAINED and args[5]:
        return tensors_among(args[3:5])
    places, names = _mutable(op)
    return tensors_among([args[i] for i in places if i < len(args)] + [kwargs[n] for n in names if n in kwargs])


@cache
def _mutable(op: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Positions and names of the arguments that an operator writes to."""
    arguments = compat.written_arguments(op)
    return tuple(place for place, _ in arguments), tuple(name for _, name in arguments)


def _in_containers(value: Any) -> Iterator[Tensor]:
    """Tensors in the containers of a module's attribute, but not in other objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _in_containers(item)


def _is_gone(ref: Any) -> bool:
    return not isinstance(ref, Tensor) and ref.expired()
