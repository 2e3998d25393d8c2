"""Which convolution feeds a normalization layer: what a norm needs to know that looks at the weights before it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from syncbn.norm.core.attachable import FEEDERS, Attachable
from syncbn.norm.surgery.trace import modes_kept, symbolic_trace


def attach_norms(model: nn.Module, example_input: Tensor | None = None) -> dict[str, str]:
    """Give every layer of `model` that acts on the convolution before it that convolution, by `layer.attach(conv)`.

    What feeds what is read off a symbolic trace (`torch.fx`), or, given `example_input`, off one forward pass in
    evaluation mode, which also finds its way through models that can't be traced. A layer is attached when its input
    is the output of one convolution or linear module, and both are called once in a forward pass.

    Args:
        model: its layers without an `attach` method, and those attached already, are left alone, as is `model` itself.
        example_input: an input for one forward pass.

    Returns:
        The layers that couldn't be attached, by name, each with the reason. They are told by
        `layer.without_feeder(reason)`, and a warning lists them; a layer that has no such method can't do without.

    Raises:
        ValueError: a layer that can't do without its convolution has none; the model can't be traced.
    """
    waiting: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if name and isinstance(module, Attachable) and not module.is_attached
    }
    if not waiting:
        return {}
    calls = _calls_by_trace(model) if example_input is None else _calls_by_forward(model, example_input)
    feeders = {name: _feeder(module, calls) for name, module in waiting.items()}
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


class _Call:
    """One call of a module: what its input was computed by, a module or the name of something else."""

    def __init__(self, module: nn.Module, source: nn.Module | str) -> None:
        self.module = module
        self.source = source


def _feeder(norm: nn.Module, calls: list[_Call]) -> nn.Module | str:
    """The module that feeds `norm`, or the reason why there is none."""
    sources = [call.source for call in calls if call.module is norm]
    if len(sources) != 1:
        return f"it is called {len(sources)} times in a forward pass"
    (source,) = sources
    if isinstance(source, str):
        return f"its input comes from {source}"
    if not isinstance(source, FEEDERS):
        return f"its input comes from a {type(source).__name__}"
    times = sum(call.module is source for call in calls)
    return source if times == 1 else f"the {type(source).__name__} before it is called {times} times in a forward pass"


def _calls_by_trace(model: nn.Module) -> list[_Call]:
    try:
        seen = symbolic_trace(model)
    except ValueError as error:
        raise ValueError(f"{error}; or call layer.attach(conv) yourself") from error
    return [_Call(call.module, _source_of(call.input, model)) for call in seen.calls]


def _source_of(node: Any, model: nn.Module) -> nn.Module | str:
    if not isinstance(node, torch.fx.Node):
        return "an argument given by name"
    if node.op == "placeholder":
        return "the model's input"
    if node.op != "call_module":
        return f"{getattr(node.target, '__name__', node.target)}()"
    source = model.get_submodule(str(node.target))
    return _source_of(node.args[0], model) if isinstance(source, nn.Identity) else source


def _calls_by_forward(model: nn.Module, example_input: Tensor) -> list[_Call]:
    outputs: list[tuple[Any, nn.Module | str]] = []
    calls: list[_Call] = []

    def origin(value: Any) -> nn.Module | str:
        return next((source for output, source in reversed(outputs) if output is value), "no module's output")

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        source = origin(args[0]) if args else "an argument given by name"
        calls.append(_Call(module, source))
        outputs.append((output, source if isinstance(module, nn.Identity) else module))

    leaves = [module for module in model.modules() if isinstance(module, Attachable) or not any(module.children())]
    handles = [module.register_forward_hook(record) for module in leaves]
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()(example_input)
    finally:
        for handle in handles:
            handle.remove()
    return calls
