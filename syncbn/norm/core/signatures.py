"""Options from a layer's signature, where there is no dataclass, and the check that the two agree."""

import contextlib
import functools
import inspect
import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from syncbn.norm.core.inspection import annotations_of, signature_of
from syncbn.norm.core.options import default_of, kinds, option, redeclared, required
from syncbn.norm.core.shared_options import Running, Synchronized

OF_CODE = ("process_group", "device", "dtype")  # arguments that a config can't have
OF_CONFIGS = ("keras_momentum", "sync_group")  # options that become other arguments
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_PLAIN = (bool, int, float, str, types.NoneType)


def arguments_of(layer: Callable[..., Any]) -> list[inspect.Parameter]:
    """Arguments of a layer after the first, the number of channels."""
    return [p for p in list(signature_of(layer).parameters.values())[1:] if p.kind not in _VARIADIC]


def _handed_on(layer: Any) -> dict[str, inspect.Parameter]:
    """Arguments of a layer by name; for a class with `**options`, also those of its base class."""
    own = {argument.name: argument for argument in arguments_of(layer)}
    if not (isinstance(layer, type) and takes_more(layer)):
        return own
    above = next(base for base in layer.__mro__[1:] if "__init__" in vars(base))
    return (_handed_on(above) if above is not object else {}) | own


def takes_more(layer: Callable[..., Any]) -> bool:
    """Whether a layer has `**options`."""
    return any(p.kind is p.VAR_KEYWORD for p in signature_of(layer).parameters.values())


def options_from_signature(layer: Callable[..., Any]) -> type:
    """Make a dataclass of a layer's arguments with its annotations' types; Any for types that a config doesn't have."""
    annotations, arguments = _annotations(layer), _handed_on(layer)
    declared: list[tuple[str, Any, Any]] = []
    for name, argument in arguments.items():
        if argument.default is argument.empty:
            declared.append((name, _in_a_config(annotations.get(name)), required("")))
        elif name not in OF_CODE and _is_plain(argument.default):
            kind = annotations.get(name, _kind_of(argument.default))
            declared.append((name, _in_a_config(kind), option(argument.default, "")))
    for name, of, because in (("keras_momentum", Running, "momentum"), ("sync_group", Synchronized, "process_group")):
        if because in arguments and name not in arguments:
            declared.append((name, kinds(of)[name], redeclared(of, name, getattr(of, name))))
    name = getattr(layer, "__name__", type(layer).__name__)
    made = make_dataclass(f"{name}Options", declared, kw_only=True)
    made.__doc__ = (layer.__doc__ or name).strip().partition("\n")[0]  # not its base's
    return made


def check_declared(layer: Callable[..., Any], options: type) -> None:
    """Raise `TypeError` or `ValueError` if a dataclass can't be the options of a layer, or has different defaults."""
    if not (isinstance(options, type) and is_dataclass(options)):
        raise TypeError(f"options must be a dataclass, got {options!r}")
    try:
        kinds(options)
    except Exception as error:
        raise TypeError(
            f"the types of {options.__name__} can't be read: {error!r}; define them in its module"
        ) from error
    arguments = {argument.name: argument.default for argument in arguments_of(layer)}
    for field in fields(options):
        where, declared = f"{options.__name__}.{field.name}", default_of(field)
        if field.name == "name":
            raise ValueError(f"{where}: a config's norm.name is the norm's own name; call the option another")
        if declared is not MISSING and not _is_plain(declared):
            raise ValueError(f"{where}: a config can't hold the default {declared!r}; take a number, a text or a list")
        if field.name in OF_CONFIGS or (field.name not in arguments and takes_more(layer)):
            continue
        if field.name not in arguments:
            raise ValueError(f"{where}: the layer has no such argument; it has {', '.join(arguments) or 'none'}")
        if declared is not MISSING and _listed(arguments[field.name]) != _listed(declared):
            said = f"is {declared!r} there and {arguments[field.name]!r} in the signature"
            raise ValueError(f"{where} {said}; write {field.name}={where} in the signature, too")


def _annotations(layer: Any) -> dict[str, Any]:
    """Types of a layer's arguments, without those that need type-checking imports."""
    while isinstance(layer, functools.partial):
        layer = layer.func
    functions = [inspect.unwrap(layer)]
    if isinstance(layer, type):
        functions = [vars(base)["__init__"] for base in reversed(layer.__mro__) if "__init__" in vars(base)]
    found: dict[str, Any] = {}
    for function in functions:
        for name, annotation in annotations_of(function).items():
            one = types.SimpleNamespace(__annotations__={name: annotation})
            found.pop(name, None)
            with contextlib.suppress(NameError, AttributeError, TypeError):
                found |= get_type_hints(one, getattr(function, "__globals__", {}), include_extras=True)
    return found


def _kind_of(default: Any) -> Any:
    """Type of an argument without an annotation; a default of type int may stand for a float."""
    return {bool: bool, int: float, float: float, str: str}.get(type(default), Any)


def _in_a_config(kind: Any) -> Any:
    """The type, or Any if the check of configs doesn't support it."""
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


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
