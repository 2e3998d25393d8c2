"""Forward passes of any model without side effects: how to call it, on which copy, in which mode."""

from __future__ import annotations

import copy
import dataclasses
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from syncbn.norm.core import compat
from syncbn.norm.core.inspection import signature_of

# Input of a model: one argument, a tuple of positional ones, a dict of keywords, or the argument of `forward=`.
Example = Any
Forward = Callable[[nn.Module, Any], Any]


def run(model: nn.Module, example_input: Example, forward: Forward | None = None) -> Any:
    """Call a model.

    Args:
        model: a model, in the mode to run it in.
        example_input: a tuple is the model's positional arguments, a dict its keywords, anything else its argument.
        forward: function that calls the model instead, `forward(model, example_input)`.

    Raises:
        TypeError: the model takes other arguments.
    """
    if forward is not None:
        return forward(model, example_input)
    args: tuple[Any, ...] = (example_input,)
    keywords: dict[str, Any] = {}
    if isinstance(example_input, tuple) and not hasattr(example_input, "_fields"):
        args = example_input
    elif isinstance(example_input, Mapping):
        args, keywords = (), dict(example_input)
    try:
        return model(*args, **keywords)
    except TypeError as error:
        if _takes(model, args, keywords):
            raise
        raise TypeError(
            f"{type(model).__name__} can't be called with this example_input: {error}. A tuple is its positional "
            "arguments, a dict its keywords; of a batch (images, labels) give the images, or say how the model is "
            "called with forward=lambda model, batch: ..."
        ) from error


def _takes(model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    try:
        signature_of(model.forward).bind(*args, **keywords)
    except TypeError:
        return False
    except ValueError:  # a forward written in C has no signature
        pass
    return True


def copied(model: nn.Module, share_parameters: bool = False) -> nn.Module:
    """Make a deep copy of a model, optionally one that shares its parameters.

    Process groups and scripted functions are shared. A tensor that a hook computed and stored on a module, such as the
    `weight` of torch's old `weight_norm` or of a pruning mask, is copied by value; `copy.deepcopy` refuses it.
    """
    memo: dict[int, Any] = {}
    if share_parameters:
        memo |= {id(parameter): parameter for parameter in model.parameters()}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
            elif isinstance(value, ProcessGroup | torch.jit.ScriptFunction):
                memo[id(value)] = value
            elif type(value) in (dict, OrderedDict) and not value:
                memo[id(value)] = type(value)()  # a dozen hook dictionaries per module, slow to deepcopy
    with torch.no_grad():  # otherwise a scripted module's copy would depend on the original
        clone = copy.deepcopy(model, memo)
    for parameter, original in zip(clone.parameters(), model.parameters(), strict=True):
        if parameter.requires_grad != original.requires_grad:
            parameter.requires_grad_(original.requires_grad)
    return clone


def copied_example(example_input: Example) -> Example:
    """Copy an example's tensors, so that a model that works in place doesn't change the caller's."""
    return compat.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), example_input)


def varied(example_input: Example) -> Example:
    """Make an example of the same shapes with noise of the same mean and spread instead of floating-point values."""

    def other(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.numel() == 0:
            return tensor.detach().clone()
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64, device="cpu")
        spread = tensor.double().std(correction=0).clamp(min=0.1)
        values = noise.to(tensor.device) * spread + tensor.double().mean()
        return torch.empty_like(tensor).copy_(values)

    return compat.tree_map_only(Tensor, other, example_input)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Collect all tensors in nested containers, mappings, dataclasses and other objects, each once."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if item is None or isinstance(item, str | bytes | int | float | complex | type | nn.Module) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        else:
            waiting += reversed(list(_parts(item)))


def _parts(item: Any) -> Iterator[Any]:
    if isinstance(item, Mapping):
        yield from item.values()
    elif isinstance(item, list | tuple | set | frozenset):
        yield from item
    elif dataclasses.is_dataclass(item):
        yield from (getattr(item, field.name, None) for field in dataclasses.fields(item))
    elif type(item).__module__ != "builtins" and not callable(item):
        yield from getattr(item, "__dict__", {}).values()
        for cls in type(item).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            yield from (getattr(item, name, None) for name in ([slots] if isinstance(slots, str) else slots))


@contextmanager
def outside_of_modes() -> Iterator[None]:
    """Leave the caller's inference mode and autocast, in which operators aren't those of the model's own types."""
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def has_values(model: nn.Module) -> bool:
    """Whether a model is neither on the meta device nor has lazy layers."""
    return not any(nn.parameter.is_lazy(tensor) or tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def refuse_without_values(model: nn.Module) -> None:
    """Raise `ValueError` unless it `has_values`, with what to do."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{name} has no shape yet: run the model once, so that its lazy layers know their inputs")
        if tensor.is_meta:
            raise ValueError(
                f"{name} is on the meta device and has no values: model.to_empty(device=...) and load its weights first"
            )


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore each module's `training` at the end."""
    training = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


@contextmanager
def seeded(devices: set[torch.device]) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch with 0, and restore them at the end."""
    python = random.getstate()
    numpy: Any = sys.modules.get("numpy.random")
    numpys = numpy.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
            torch.manual_seed(0)
            random.seed(0)
            if numpy is not None:
                numpy.seed(0)
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(numpys)


def devices_of(model: nn.Module) -> set[torch.device]:
    """Devices of a model's parameters and buffers."""
    return {tensor.device for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
