"""What a network computes, in order, as seen in one forward pass: its modules' calls and the functions within them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from syncbn.policy.batches import modes_kept

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
        function: `torch.nn.functional.conv2d`, `torch.Tensor.add`, ...
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

    def uses(self, tensor: Tensor) -> bool:
        """Whether a tensor is among the arguments."""
        return any(used is tensor for used in tensors_in((self.args, self.kwargs)))


@dataclass
class Trace:
    """One forward pass in evaluation mode. It keeps every tensor alive, so that each has an identity of its own."""

    calls: list[ModuleCall] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    output: Any = None

    def calls_of(self, module: nn.Module) -> list[ModuleCall]:
        """The calls of a module."""
        return [call for call in self.calls if call.module is module]

    def source_of(self, tensor: Any, kinds: tuple[type[nn.Module], ...]) -> nn.Module | None:
        """The module of one of these kinds that returned this very tensor."""
        return next((c.module for c in self.calls if c.output is tensor and isinstance(c.module, kinds)), None)

    def is_used_outside(self, tensor: Tensor, module: nn.Module) -> bool:
        """Whether anything but `module` computes with a tensor, or the network returns it."""
        returned = any(output is tensor for output in tensors_in(self.output))
        return returned or any(op.uses(tensor) and module not in op.modules for op in self.operations)


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


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))


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
