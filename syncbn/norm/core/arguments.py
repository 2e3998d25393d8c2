"""Check of a constructor's arguments against the declaration of its options."""

import os
import types
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from syncbn.norm.core.options import Range, default_of, describe, fits, kinds, shown, suggest

_WORDS = {int: "an int", float: "a number", bool: "True or False", str: "a str", types.NoneType: "None"}


def check_arguments(schema: type, arguments: Mapping[str, Any]) -> None:
    """Check the arguments that are options of a dataclass; a constructor calls it with its `locals()`.

    All keys of `shared`, a constructor's `**shared`, must be options.

    Raises:
        TypeError: a value of the wrong type; an unknown key in `shared`.
        ValueError: a value out of bounds, or not among the allowed names, with the option's own message (`refusal`).
    """
    shared = arguments.get("shared", {})
    for name in shared:
        if name not in kinds(schema):
            raise TypeError(f"got an unexpected keyword argument {name!r}; {suggest(name, kinds(schema))}")
    given = {**arguments, **shared}
    for field in fields(schema):
        if field.name in given:
            value, kind = plain(given[field.name]), kinds(schema)[field.name]
            if not fits(value, kind) and not (kind is bool and value in (0, 1)):
                raise _refused(field, kind, value)


def _refused(field: Field[Any], kind: Any, value: Any) -> Exception:
    members = list(_members(kind))
    names = [name for member in members if get_origin(member) is Literal for name in get_args(member)]
    if refusal := field.metadata.get("refusal"):
        return ValueError(refusal.format(value=value, allowed=", ".join(map(repr, names))))
    others = [member for member in members if get_origin(member) is not Literal]
    of_a_type = any(fits(value, _bare(member)) for member in others)
    if not of_a_type and type(value) not in map(type, names):
        return TypeError(f"{field.name} must be {_either([*map(_word, others), *map(repr, names)])}, got {value!r}")
    message = f"{field.name} must be {_either([*map(_bounds, others), *map(repr, names)])}, got {value!r}"
    usual = default_of(field)
    is_number = isinstance(usual, int | float) and not isinstance(usual, bool)
    return ValueError(f"{message}; {shown(usual)} is the usual value" if is_number and of_a_type else message)


def _members(kind: Any) -> Iterator[Any]:
    """Members of a union; any other type by itself."""
    if get_origin(kind) in (Union, types.UnionType):
        for member in get_args(kind):
            yield from _members(member)
    else:
        yield kind


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _word(kind: Any) -> str:
    return _WORDS.get(_bare(kind)) or describe(_bare(kind))


def _bounds(kind: Any) -> str:
    """Describe a number's bounds: "at least 1", "greater than 0", "in [0, 1]"; its type if there are none."""
    bounds = get_args(kind)[1] if get_origin(kind) is Annotated else Range()
    if bounds.low is not None and bounds.high is not None:
        return f"in [{bounds.low:.12g}, {bounds.high:.12g}]"
    if bounds.above is not None and bounds.below is bounds.high is None:
        return f"greater than {bounds.above:.12g}"
    return str(bounds) or _word(kind)


def _either(words: list[str]) -> str:
    if len(words) > 2:
        return f"one of {', '.join(words)}"
    return " or ".join(words)


def plain(value: Any) -> Any:
    """Convert numpy's and torch's numbers, tuples and paths to a config's types; anything else is unchanged."""
    if hasattr(value, "item") and not getattr(value, "shape", ()):
        return value.item()
    if isinstance(value, tuple):
        return list(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value
