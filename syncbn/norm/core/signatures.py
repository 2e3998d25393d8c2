"""Options of a layer that declares none: what its signature says of them."""

import contextlib
import inspect
import types
from collections.abc import Callable
from dataclasses import make_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from syncbn.norm.core.options import option, required

OF_CODE = ("process_group", "device", "dtype")  # arguments that a config can't say
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_PLAIN = (bool, int, float, str, types.NoneType)


def arguments_of(layer: Callable[..., Any]) -> list[inspect.Parameter]:
    """The arguments of a layer after the first, which is the number of channels."""
    return [p for p in list(inspect.signature(layer).parameters.values())[1:] if p.kind not in _VARIADIC]


def takes_more(layer: Callable[..., Any]) -> bool:
    """Whether a layer has `**options`."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(layer).parameters.values())


def options_from_signature(layer: Callable[..., Any]) -> type:
    """A dataclass of a layer's arguments, with the types of its annotations; Any where a config has no such type."""
    annotations = _annotations(layer)
    declared: list[tuple[str, Any, Any]] = []
    for argument in arguments_of(layer):
        if argument.name in OF_CODE:
            continue
        if argument.default is argument.empty:
            declared.append((argument.name, _in_a_config(annotations.get(argument.name)), required("")))
        elif _is_plain(argument.default):
            kind = annotations.get(argument.name, _kind_of(argument.default))
            declared.append((argument.name, _in_a_config(kind), option(argument.default, "")))
    name = getattr(layer, "__name__", type(layer).__name__)
    made = make_dataclass(f"{name}Options", declared, kw_only=True)
    made.__doc__ = (inspect.getdoc(layer) or name).partition("\n")[0]
    return made


def _annotations(layer: Any) -> dict[str, Any]:
    """The types of a layer's arguments, without those that name what only a type checker imports."""
    function = inspect.unwrap(layer if inspect.isfunction(layer) else layer.__init__)
    found: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        one = types.SimpleNamespace(__annotations__={name: annotation})
        with contextlib.suppress(NameError, AttributeError, TypeError):
            found |= get_type_hints(one, getattr(function, "__globals__", {}), include_extras=True)
    return found


def _kind_of(default: Any) -> Any:
    """The type of an argument without an annotation: an int by default may well be a fraction."""
    return {bool: bool, int: float, float: float, str: str}.get(type(default), Any)


def _in_a_config(kind: Any) -> Any:
    """The type, or Any where the check of configs doesn't know it."""
    return kind if _is_known(kind) else Any


def _is_known(kind: Any) -> bool:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _is_known(args[0])
    if origin in (Union, types.UnionType):
        return all(map(_is_known, args))
    if origin is list:
        return _is_known(args[0])
    return origin is Literal or kind in _PLAIN


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return isinstance(value, _PLAIN)
