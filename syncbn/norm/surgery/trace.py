"""What a network computes, in order, as seen in a forward pass or a symbolic trace: calls of modules and functions."""

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from syncbn.norm.core import compat

Example = Tensor | tuple[Any, ...]


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: its first argument and what it returned, the very objects."""

    module: nn.Module
    input: Any
    output: Any


@dataclass(frozen=True)
class Operation:
    """One call of a torch function that returned tensors.

    Attributes:
        function: `torch.nn.functional.conv2d`, `torch.Tensor.add`, ...; in a symbolic trace, a module that it doesn't
            look into, too.
        args: as it was called, the very objects.
        kwargs: the same.
        output: what it returned.
        modules: the modules that were running, outermost first.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    modules: tuple[nn.Module, ...]

    def uses(self, value: Any) -> bool:
        """Whether a tensor is among the arguments."""
        return _is_in(value, (self.args, self.kwargs))


@dataclass
class Trace:
    """One forward pass in evaluation mode, or a symbolic one, which has nodes of a graph in the place of tensors.

    It keeps every tensor alive, so that each has an identity of its own.
    """

    calls: list[ModuleCall] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    output: Any = None

    def calls_of(self, module: nn.Module) -> list[ModuleCall]:
        """The calls of a module."""
        return [call for call in self.calls if call.module is module]

    def source_of(self, tensor: Any, kinds: tuple[type[nn.Module], ...]) -> nn.Module | None:
        """The module of one of these kinds that returned this very tensor."""
        return next((c.module for c in self.calls if c.output is tensor and isinstance(c.module, kinds)), None)

    def returns(self, value: Any) -> bool:
        """Whether a tensor is among what the network returns."""
        return _is_in(value, self.output)

    def uses_outside(self, value: Any, module: nn.Module) -> list[Operation]:
        """What computes with a tensor outside of `module`, in order."""
        return [op for op in self.operations if op.uses(value) and module not in op.modules]

    def is_used_outside(self, tensor: Tensor, module: nn.Module) -> bool:
        """Whether anything but `module` computes with a tensor, or the network returns it."""
        return self.returns(tensor) or bool(self.uses_outside(tensor, module))


def trace(model: nn.Module, example_input: Example) -> Trace:
    """Run `model` once, in evaluation mode and without gradients, and note what it does.

    Args:
        model: any model; nothing of it changes.
        example_input: its argument, or a tuple of its arguments.
    """
    found = Trace()
    running: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        running.append(module)

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        running.pop()
        first = next(iter((*args, *kwargs.values())), None)
        found.calls.append(ModuleCall(module, first, output))

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    try:
        with modes_kept(model), torch.no_grad(), _Recorder(found.operations, running):
            found.output = model.eval()(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    return found


def symbolic_trace(model: nn.Module, leaves: Container[nn.Module] = ()) -> Trace:
    """What `model` computes, without an input, by `torch.fx`.

    Args:
        model: any model whose path doesn't depend on the values of tensors.
        leaves: modules not to look into, beside torch's own and the norms of this package.

    Raises:
        ValueError: it can't be traced so.
    """
    try:
        graph = _Tracer(leaves).trace(model)
    except Exception as error:
        raise ValueError(f"can't trace this model ({error}): give an example_input") from error
    found = Trace()
    for node in graph.nodes:
        function: Any = node.target
        modules: tuple[nn.Module, ...] = ()
        if node.op == "output":
            found.output = node.args
            continue
        if node.op == "call_method":
            function = getattr(Tensor, function)
        elif node.op == "call_module":
            function = model.get_submodule(function)
            modules = (function,)
            found.calls.append(ModuleCall(function, next(iter((*node.args, *node.kwargs.values())), None), node))
        if node.op.startswith("call_"):
            found.operations.append(Operation(function, node.args, dict(node.kwargs), node, modules))
    return found


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put each module's `training` back at the end."""
    training = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    return (leaf for leaf in compat.pytree.tree_leaves(value) if isinstance(leaf, Tensor))


def _is_in(value: Any, nested: Any) -> bool:
    return any(leaf is value for leaf in compat.pytree.tree_leaves(nested))


class _Tracer(torch.fx.Tracer):
    def __init__(self, leaves: Container[nn.Module]) -> None:
        super().__init__()
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_norm = any(cls.__module__.startswith("syncbn.norm.") for cls in type(m).__mro__)
        return is_norm or m in self._leaves or super().is_leaf_module(m, module_qualified_name)


class _Recorder(TorchFunctionMode):
    def __init__(self, operations: list[Operation], running: list[nn.Module]) -> None:
        super().__init__()
        self._operations = operations
        self._running = running

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if any(True for _ in tensors_in(output)):  # not the question for a shape or a device
            self._operations.append(Operation(func, args, kwargs or {}, output, tuple(self._running)))
        return output
