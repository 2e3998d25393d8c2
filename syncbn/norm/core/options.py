"""Options of a run's parts, each declared once in a dataclass with type, bounds, default and help.

The dataclass is next to what it describes and imports no torch: the layer in `group.py` has its options in
`group_options.py`. They define the layer's defaults and the check of its arguments (`core/arguments.py`). The config,
its check (`mistakes`), the printed help and the tables of the documentation read the same declaration.
"""

import copy
import difflib
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from syncbn.norm.core.inspection import annotations_of

Default = TypeVar("Default")


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for `Annotated[int, Range(low=1)]`; `above` and `below` are exclusive."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return " and ".join(f"{word} {bound:.12g}" for word, bound in bounds.items() if bound is not None)


Count = Annotated[int, Range(low=1)]
Natural = Annotated[int, Range(low=0)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(low=0)]
Fraction = Annotated[float, Range(low=0, high=1)]
BelowOne = Annotated[float, Range(low=0, below=1)]
Share = Annotated[float, Range(above=0, below=1)]  # exclusive bounds


def option(default: Default, help: str, refusal: str | None = None) -> Default:
    """Declare an option, a field of a dataclass.

    Args:
        default: its value; a list or a dictionary is copied for each use.
        help: description in one line, without a capital and a full stop.
        refusal: message of `syncbn.norm.core.arguments` for an invalid value; `{value}` is the value and `{allowed}`
            the allowed names.
    """
    metadata = {"help": help, "refusal": refusal}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def required(help: str) -> Any:
    """Declare an option without a default."""
    return field(metadata={"help": help})


def redeclared(schema: type, name: str, default: Default) -> Default:
    """Declare an option of `schema` again, with another default or a narrower type, in a derived dataclass."""
    metadata = next(f.metadata for f in fields(schema) if f.name == name)
    return option(default, metadata["help"], metadata["refusal"])


@dataclass
class Partial:
    """Options of something that is called later with further arguments, such as an optimizer with parameters."""

    _partial_: Literal[True] = required("that it is called later")


def suggest(got: str, allowed: Iterable[str]) -> str:
    """Suggest names for a misspelt one, for the end of a message: "did you mean 'sync'? allowed: batch, sync"."""
    names = sorted(allowed)
    close = difflib.get_close_matches(got, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names) or 'none'}"


def option_fields(schema: type) -> list[Field[Any]]:
    """Fields of a dataclass of options, its own before inherited ones."""
    own = list(annotations_of(schema))
    return sorted(fields(schema), key=lambda f: f.name not in own)


def field_names(schema: type) -> list[str]:
    """Keys of a dataclass of options, its own before inherited ones."""
    return [field.name for field in option_fields(schema)]


def default_of(field: Field[Any]) -> Any:
    """Default of a field; `dataclasses.MISSING` if it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def defaults(schema: type) -> dict[str, Any]:
    """Defaults of all options that have one."""
    return {f.name: default_of(f) for f in option_fields(schema) if default_of(f) is not MISSING}


@cache
def kinds(schema: type) -> dict[str, Any]:
    """Types of the options, with bounds."""
    return get_type_hints(schema, include_extras=True)


def mistakes(data: Mapping[str, Any], schema: type, where: str = "") -> list[str]:
    """Check `data`; returns a line for each key that is unknown, missing, of the wrong type, or out of range.

    Args:
        data: plain Python values.
        schema: a dataclass: its fields are the keys, annotations the types; fields without a default are required.
        where: dotted name of `data`.
    """
    allowed = kinds(schema)
    prefix = f"{where}." if where else ""
    found = [f"{prefix}{key}: no such key; {suggest(str(key), allowed)}" for key in data if key not in allowed]
    for name, kind in allowed.items():
        if name in data:
            found += _value_mistakes(data[name], kind, f"{prefix}{name}")
        elif name not in defaults(schema):
            found.append(f"{prefix}{name}: missing; it is {describe(kind)}")
    return found


def _value_mistakes(value: Any, kind: Any, where: str) -> list[str]:
    if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__") and isinstance(value, Mapping):
        return mistakes(value, kind, where)
    if fits(value, kind):
        return []
    if isinstance(value, str) and (names := _names(kind)):
        return [f"{where}: got {value!r}; {suggest(value, names)}"]
    return [f"{where}: expected {describe(kind)}, got {value!r}"]


def fits(value: Any, kind: Any) -> bool:
    """Whether a plain value has a type and is within its bounds."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Annotated:
        return fits(value, args[0]) and all(value is None or value in bounds for bounds in args[1:])
    if origin is Literal:
        return any(value == allowed and type(value) is type(allowed) for allowed in args)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in args)
    if origin is list:
        return isinstance(value, list) and all(fits(item, args[0]) for item in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(args) and all(map(fits, value, args))
    if origin is dict:
        return isinstance(value, Mapping) and all(fits(item, args[1]) for item in value.values())
    if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
        return isinstance(value, Mapping) and not mistakes(value, kind)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _names(kind: Any) -> list[str]:
    """Strings that a type allows; none if it allows any string."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [name for name in args if isinstance(name, str)]
    if origin in (Union, types.UnionType, Annotated):
        return [name for option in args for name in _names(option)]
    return []


def describe(kind: Any) -> str:
    """Describe a type with its bounds: "an integer at least 1 or null"."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{describe(args[0])} {' and '.join(str(bounds) for bounds in args[1:])}"
    if origin is Literal:
        return " or ".join(dict.fromkeys(str(name) for name in args))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in args)
    if origin is list:
        return f"a list of {describe(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)}, each {describe(args[0])}"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", types.NoneType: "null"}
    return words.get(kind, "anything" if kind is Any else "a group of keys")


def shown(value: Any) -> str:
    """Format a default as in a config: 1e-5, null, true."""
    if isinstance(value, float):
        return f"{value:.12g}".replace("e-0", "e-") if value % 1 else f"{value:.1f}"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
