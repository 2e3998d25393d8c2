"""Options: what a part of a run may be told, declared once, in a dataclass of types, bounds, defaults and help.

The dataclass stands beside what it describes and imports no torch: the layer in `group.py` has its own in
`group_options.py`. The layer takes its defaults from there and has its arguments checked by it (`core/arguments.py`);
the config, its check (`mistakes`), the printed help and the tables of the documentation read the same declaration.
"""

import copy
import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Default = TypeVar("Default")


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


Count = Annotated[int, Range(low=1)]
Natural = Annotated[int, Range(low=0)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(low=0)]
Fraction = Annotated[float, Range(low=0, high=1)]
BelowOne = Annotated[float, Range(low=0, below=1)]
Share = Annotated[float, Range(above=0, below=1)]  # neither nothing nor all


def option(default: Default, help: str, refusal: str | None = None) -> Default:
    """A field of a dataclass of options.

    Args:
        default: its default; a list or a dictionary is copied for each use.
        help: what it is, in a line without a capital and a full stop.
        refusal: what `syncbn.norm.core.arguments` says of a value that it doesn't allow; `{value}` is the value, and
            `{allowed}` the names that are allowed.
    """
    metadata = {"help": help, "refusal": refusal}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def required(help: str) -> Any:
    """A field of a dataclass of options that has no default."""
    return field(metadata={"help": help})


def redeclared(schema: type, name: str, default: Default) -> Default:
    """An option of `schema` with another default, or of a narrower type, in a dataclass derived from it."""
    metadata = next(f.metadata for f in fields(schema) if f.name == name)
    return option(default, metadata["help"], metadata["refusal"])


@dataclass
class Partial:
    """Of what is called later, with further arguments: an optimizer, by a task that has parameters for it."""

    _partial_: Literal[True] = required("that it is called later")


def suggest(got: str, allowed: Iterable[str]) -> str:
    """The end of a message about a misspelt name: "did you mean 'sync'? allowed: batch, sync"."""
    names = sorted(allowed)
    close = difflib.get_close_matches(got, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names) or 'none'}"


def option_fields(schema: type) -> list[Field[Any]]:
    """The fields of a dataclass of options, its own before those that it shares with others."""
    own = list(vars(schema).get("__annotations__", ()))
    return sorted(fields(schema), key=lambda f: f.name not in own)


def field_names(schema: type) -> list[str]:
    """The keys that a dataclass describes, its own before those that it shares with others."""
    return [field.name for field in option_fields(schema)]


def default_of(field: Field[Any]) -> Any:
    """The default of a field; `dataclasses.MISSING` where it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def defaults(schema: type) -> dict[str, Any]:
    """Every option that has a default, and that default."""
    return {f.name: default_of(f) for f in option_fields(schema) if default_of(f) is not MISSING}


@cache
def kinds(schema: type) -> dict[str, Any]:
    """The type of each option, with its bounds."""
    return get_type_hints(schema, include_extras=True)


def mistakes(data: Mapping[str, Any], schema: type, where: str = "") -> list[str]:
    """What is wrong in `data`, a line for each key: unknown, missing, of the wrong type, or out of range.

    Args:
        data: plain Python values.
        schema: a dataclass. Its fields are the keys, their annotations the types; those without a default are required.
        where: the dotted name of `data` itself.
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
    """Whether a plain value is of a type and within its bounds."""
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
    """The strings that a kind allows, where those are few; none where any string will do."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [name for name in args if isinstance(name, str)]
    if origin in (Union, types.UnionType, Annotated):
        return [name for option in args for name in _names(option)]
    return []


def describe(kind: Any) -> str:
    """A type with its bounds, in words: "an integer at least 1 or null"."""
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
    """A default as people write it in a config: 1e-5, null, true."""
    if isinstance(value, float):
        return f"{value:.12g}".replace("e-0", "e-") if value % 1 else f"{value:.1f}"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
