"""Recording of all operations of a forward pass on real tensors, wherever they are called from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from syncbn.norm.core import compat
from syncbn.norm.surgery.forward import (
    Example,
    Forward,
    copied,
    copied_example,
    devices_of,
    modes_kept,
    outside_of_modes,
    refuse_without_values,
    run,
    seeded,
    tensors_in,
    varied,
)
from syncbn.norm.surgery.graph import Function, Graph
from syncbn.norm.surgery.recorder import Observer, Recorder, tensors_among

# Methods that expose a tensor's content outside torch, where it may also be changed.
_LEAVES = frozenset(
    """
    numpy __array__ tolist data_ptr const_data_ptr untyped_storage _typed_storage storage __dlpack__ to_dlpack
    share_memory_ __reduce_ex__ __cuda_array_interface__
    """.split()  # noqa: SIM905 (a list of them would be a page)
)


@outside_of_modes()
def record(
    model: nn.Module,
    example_input: Example,
    forward: Forward | None = None,
    *,
    training: bool = False,
    graph: Graph | None = None,
    watch: Observer | None = None,
) -> Graph:
    """Run `model` once, without gradients, and record what it computes.

    It sees all operators that torch dispatches, including those in TorchScript, custom autograd functions, hooks,
    parametrizations and tensor subclasses; in-place writes, also through views; and where a tensor's content leaves
    torch, as in `x.numpy()`. What it can't see counts as a use: a tensor of unknown origin, such as an extension's, may
    depend on anything before it (`Graph.unseen`), and memory alive at the end counts as returned or stored
    (`Graph.kept`).

    It runs a copy that shares the model's parameters. Writes to them are undone, and random generators are restored.

    Args:
        model: any model.
        example_input: input of the model, see `syncbn.norm.surgery.forward.run`.
        forward: function that calls the model, if that isn't enough.
        training: run in training mode, except for the norms, which may need more samples there; else in evaluation.
        graph: graph to write to; it is incomplete if the model raises.
        watch: callback for each operation, with the tensors that it returned.

    Raises:
        ValueError: the model has no values yet.

    Returns:
        The graph, with the modules of `model` itself.
    """
    refuse_without_values(model)
    try:
        clone = copied(model, share_parameters=True)
    except Exception:  # not copyable (a lock, an open file): run the model itself
        clone = model
    originals = dict(zip(clone.modules(), model.modules(), strict=True))
    example = copied_example(example_input)
    recorder = Recorder(clone, originals, Graph() if graph is None else graph, watch)
    recorder.know(tensors_in(example))
    with modes_kept(clone), torch.no_grad():
        clone.train(training)
        for module in clone.modules():
            if isinstance(module, compat.NORMS):
                module.eval()
        try:
            with seeded(devices_of(clone)), _watched_by(recorder):
                output = run(clone, example, forward)
            recorder.find_kept(output)
            del output
            if recorder.has_doubts():
                recorder.forget(_met_again(recorder, clone, varied(example_input), forward))
        finally:
            recorder.undo_writes()
    return recorder.graph


def training_pass(model: nn.Module, example_input: Example, forward: Forward | None = None) -> list[Graph]:
    """Record a pass in training mode; none where it can't run: it may need targets, or more than one sample."""
    try:
        return [record(model, example_input, forward, training=True)]
    except Exception:
        return []


@contextmanager
def _watched_by(recorder: Recorder) -> Iterator[None]:
    handles = [
        register_module_forward_pre_hook(recorder.enter),
        register_module_forward_hook(recorder.leave, with_kwargs=True, always_call=True),
    ]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when there are global hooks")
            # Without optimizations, since a fused TorchScript kernel isn't an operator
            with torch.jit.optimized_execution(False), _Functions(recorder), _Operators(recorder):  # type: ignore[attr-defined]
                yield
    finally:
        for handle in handles:
            compat.remove_global_hook(handle)


def _met_again(recorder: Recorder, model: nn.Module, example: Example, forward: Forward | None) -> set[int]:
    """Unseen tensors that a pass over other inputs meets unchanged: they existed before the pass."""
    met = _Met(recorder)
    try:
        with seeded(devices_of(model)), met:
            run(model, example, forward)
    except Exception:  # the model may reject other inputs
        return set()
    return met.unchanged


class _Operators(compat.TorchDispatchMode):
    """Dispatch mode that records each operator."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        noted = self._recorder.begin(func, args, kwargs, tensors_among((*args, *kwargs.values())))
        output = func(*args, **kwargs)
        self._recorder.end(noted, tensors_among(output if isinstance(output, tuple | list) else (output,)))
        return output


class _Functions(TorchFunctionMode):
    """Function mode that tracks the running torch function, and records those that call no operator."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        recorder, kwargs = self._recorder, kwargs or {}
        outer, before = recorder.function, len(recorder.graph.operations)
        recorder.function = outer or func
        try:
            output = func(*args, **kwargs)
        finally:
            recorder.function = outer
        if _name(func) in _LEAVES:
            recorder.let_out(func, tensors_among((*args, *kwargs.values())))
        elif isinstance(output, Tensor) and len(recorder.graph.operations) == before:
            recorder.pass_on(func, tensors_among((*args, *kwargs.values())), output)
        return output


class _Met(compat.TorchDispatchMode):
    """Collects the unseen storages of a recorder that are met again with the same content."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self.unchanged: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        with compat.no_torch_functions():
            for tensor in tensors_among((*args, *(kwargs or {}).values())):
                number = self._recorder.unchanged(tensor)
                if number is not None:
                    self.unchanged.add(number)
        return func(*args, **(kwargs or {}))


def _name(function: Function) -> str:
    """Name of a function, or of the attribute that it gets."""
    name = getattr(function, "__name__", "")
    return getattr(getattr(function, "__self__", None), "__name__", name) if name == "__get__" else name
