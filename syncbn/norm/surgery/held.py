"""Layers that a model holds otherwise than as children: they follow their replacement, or are found."""

from __future__ import annotations

import dis
import functools
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.surgery.carry import ORIGINAL, RECORD

# Dictionaries of a module that torch keeps.
OF_TORCH = {"_modules", "_parameters", "_buffers", *compat.HOOKS}
_MAPPINGS = (dict, OrderedDict, defaultdict)
# Values of one attribute that are looked at, in which a trainer or a data set may hide.
_MOST = 100_000
# Packages whose objects hold a model as a whole, or no layers.
_PACKAGES = {"torch", "lightning", "pytorch_lightning", "numpy", "builtins"}


class Held(NamedTuple):
    """A module that isn't part of a model, although the model holds it.

    Attributes:
        where: the expression that gives it or what holds it, such as "blocks[0]".
        kind: of what holds it: "list", "function", ...
        module: what is held.
    """

    where: str
    kind: str
    module: nn.Module


def with_new(value: Any, new: dict[nn.Module, nn.Module], seen: set[int]) -> Any:
    """An attribute's value with new layers in place of the old: itself, in containers, or in what calls them.

    Args:
        value: of a plain attribute. Lists and dictionaries are changed in place.
        new: the new layers by the old ones.
        seen: identities of the containers that were changed already.
    """
    if isinstance(value, nn.Module):
        return new.get(value, value)
    if type(value) in (list, deque, *_MAPPINGS):
        if id(value) in seen:  # a container may contain itself
            return value
        seen.add(id(value))
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[key] = with_new(item, new, seen)
        return value
    if type(value) is tuple:
        items = tuple(with_new(item, new, seen) for item in value)
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    if type(value) is functools.partial:
        parts = (value.func, *value.args, *value.keywords.values())
        func, *given = (with_new(part, new, seen) for part in parts)
        if all(a is b for a, b in zip((func, *given), parts, strict=True)):
            return value
        count = len(value.args)
        return functools.partial(func, *given[:count], **dict(zip(value.keywords, given[count:], strict=True)))
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module) and value.__self__ in new:
        return getattr(new[value.__self__], value.__name__)
    return value


def held(model: nn.Module) -> Iterator[Held]:
    """Find modules outside of a model that its attributes and forward hooks hold, each once an attribute.

    It looks into containers, functions (their closures, defaults and globals), methods, partials, weak references and
    plain objects, but not into other modules.
    """
    inside = set(model.modules())
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, value in list(vars(module).items()):
            if name in (RECORD, ORIGINAL):
                continue
            if name in compat.CALLED_HOOKS:
                for hook in value.values():
                    if isinstance(hook, FunctionType | functools.partial):
                        yield from _below(hook, f"a forward hook of {path or 'the model'}", "function", inside)
            elif name not in OF_TORCH:
                yield from _below(value, f"{prefix}{name}", "attribute", inside)


def _below(value: Any, where: str, kind: str, inside: set[nn.Module]) -> Iterator[Held]:
    waiting: list[tuple[Any, str, str]] = [(value, where, kind)]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST:
        item, where, kind = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            if item not in inside:
                yield Held(where, kind, item)
        elif not isinstance(item, str | bytes | int | float | complex | type | Tensor | None):
            waiting += [(part, f"{where}{step}", inner) for part, step, inner in _parts(item)]


def _parts(item: Any) -> Iterator[tuple[Any, str, str]]:
    """What a value holds, the step to it, and the kind of the holder."""
    # Those of the class itself, since a subclass may load or log what it iterates over.
    kind = type(item).__name__
    if isinstance(item, dict):
        yield from ((part, f"[{key!r}]", kind) for key, part in dict.items(item))
    elif isinstance(item, list | tuple | deque):
        of: Any = next(cls for cls in (list, tuple, deque) if isinstance(item, cls))
        yield from ((part, f"[{number}]", kind) for number, part in enumerate(of.__iter__(item)))
    elif isinstance(item, set | frozenset):
        yield from ((part, "", kind) for part in list(item))
    elif isinstance(item, functools.partial):
        yield from ((part, "", "partial") for part in (item.func, *item.args, *item.keywords.values()))
    elif isinstance(item, MethodType):
        yield item.__self__, "", "method"
    elif isinstance(item, FunctionType):
        yield from ((part, "", "function") for part in _of_function(item))
    elif isinstance(item, weakref.ref):
        yield item(), "()", "weak reference"
    elif type(item).__module__.partition(".")[0] not in _PACKAGES:
        yield from ((part, f".{name}", kind) for name, part in getattr(item, "__dict__", {}).items())


def _of_function(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in _globals_of(function.__code__):
        if isinstance(value := function.__globals__.get(name), nn.Module):
            yield value


def _globals_of(code: Any) -> set[str]:
    return {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}


def calls_batch_norm(module: nn.Module) -> bool:
    """Whether a module of another package has a method that names `batch_norm` and a `running_mean`."""
    own = [cls for cls in type(module).__mro__ if cls.__module__.partition(".")[0] != "torch"]
    return any(_names_batch_norm(value) for cls in own for value in vars(cls).values())


def methods_that_ask(model: nn.Module) -> list[str]:
    """Methods of a model that ask whether a layer is a BatchNorm1d, 2d or 3d, which no converted layer is.

    Such as a `train` that leaves batch norms in evaluation mode. Those that initialize run before a conversion.
    """
    classes = {cls: None for module in model.modules() for cls in type(module).__mro__}
    own = [cls for cls in classes if cls.__module__.partition(".")[0] not in ("torch", "syncbn", "builtins")]
    return [
        f"{cls.__name__}.{name}"
        for cls in own
        for name, value in vars(cls).items()
        if isinstance(value, FunctionType) and "init" not in name and _asks(_names_in(value.__code__))
    ]


def _asks(names: set[str]) -> bool:
    return bool(names & {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d"}) and bool(names & {"isinstance", "type"})


def _names_in(code: CodeType) -> set[str]:
    """Names that a function uses, and the functions inside of it."""
    inner = [_names_in(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)


def _names_batch_norm(function: Callable[..., Any]) -> bool:
    return isinstance(function, FunctionType) and {"batch_norm", "running_mean"} <= set(function.__code__.co_names)
