"""Checks plain nested data, as a config is, against dataclasses, and says every mistake in one line each."""

import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for `Annotated[int, Range(low=1)]`; `above` and `below` are not among the allowed numbers."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return " and ".join(f"{word} {bound:.12g}" for word, bound in bounds.items() if bound is not None)


def suggest(got: str, allowed: Iterable[str]) -> str:
    """The end of a message about a misspelt name: "did you mean 'sync'? allowed: batch, sync"."""
    names = sorted(allowed)
    close = difflib.get_close_matches(got, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names) or 'none'}"


def field_names(schema: type) -> list[str]:
    """The keys that a dataclass describes."""
    return [field.name for field in fields(schema)]


def mistakes(data: Mapping[str, Any], schema: type, where: str = "") -> list[str]:
    """What is wrong in `data`, a line for each key: unknown, missing, of the wrong type, or out of range.

    Args:
        data: plain Python values.
        schema: a dataclass. Its fields are the keys, their annotations the types; those without a default are required.
        where: the dotted name of `data` itself.
    """
    kinds = get_type_hints(schema, include_extras=True)
    prefix = f"{where}." if where else ""
    found = [f"{prefix}{key}: no such key; {suggest(str(key), kinds)}" for key in data if key not in kinds]
    for field in fields(schema):
        if field.name in data:
            found += _value_mistakes(data[field.name], kinds[field.name], f"{prefix}{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            found.append(f"{prefix}{field.name}: missing; it is {_describe(kinds[field.name])}")
    return found


def _value_mistakes(value: Any, kind: Any, where: str) -> list[str]:
    if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__") and isinstance(value, Mapping):
        return mistakes(value, kind, where)
    if _fits(value, kind):
        return []
    if isinstance(value, str) and (names := _names(kind)):
        return [f"{where}: got {value!r}; {suggest(value, names)}"]
    return [f"{where}: expected {_describe(kind)}, got {value!r}"]


def _fits(value: Any, kind: Any) -> bool:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Annotated:
        return _fits(value, args[0]) and all(value is None or value in bounds for bounds in args[1:])
    if origin is Literal:
        return any(value == allowed and type(value) is type(allowed) for allowed in args)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in args)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(args) and all(map(_fits, value, args))
    if origin is dict:
        return isinstance(value, Mapping) and all(_fits(item, args[1]) for item in value.values())
    if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
        return isinstance(value, Mapping) and not mistakes(value, kind)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _names(kind: Any) -> list[str]:
    """The strings that a kind allows, where those are few; none where any string will do."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [name for name in args if isinstance(name, str)]
    if origin in (Union, types.UnionType, Annotated):
        return [name for option in args for name in _names(option)]
    return []


def _describe(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{_describe(args[0])} {' and '.join(str(bounds) for bounds in args[1:])}"
    if origin is Literal:
        return " or ".join(str(name) for name in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in args)
    if origin is list:
        return f"a list of {_describe(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)}, each {_describe(args[0])}"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", types.NoneType: "null"}
    return words.get(kind, "a group of keys")
