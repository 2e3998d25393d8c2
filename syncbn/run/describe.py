"""Descriptions of declared options as tables, for a terminal or in Markdown."""

import sys
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any, NamedTuple

from syncbn.norm.core.options import default_of, describe, kinds, option_fields, shown

_COLUMNS = 118
_WIDEST = 40  # width of name=value


class Row(NamedTuple):
    """Description of an option."""

    name: str
    kind: str
    default: str
    help: str


def rows_of(options: type) -> list[Row]:
    """Rows of a dataclass's options, its own first."""
    fields = [field for field in option_fields(options) if not field.name.startswith("_")]
    said = kinds(options)
    return [Row(f.name, describe(said[f.name]), _shown(default_of(f)), f.metadata.get("help", "")) for f in fields]


def summary_of(options: type) -> str:
    """Summary line of a dataclass of options; empty under `python -OO`, where a dataclass has its signature there."""
    return "" if sys.flags.optimize > 1 else (options.__doc__ or "").partition("\n")[0]


def as_text(options: type, values: Mapping[str, Any]) -> str:
    """Format options for a terminal, with their values in a config, and their defaults if those differ."""
    rows = [(row, _shown(values.get(row.name, row.default))) for row in rows_of(options)]
    width = min(max((len(f"{row.name}={value}") for row, value in rows), default=0), _WIDEST)
    lines = []
    for row, value in rows:
        usual = "" if value == row.default else f"; default {row.default}"
        first = f"  {row.name}={value}"
        if len(first) > 2 + width:
            lines.append(first)
            first = ""
        text = f"{first:<{width + 4}}{row.help} ({row.kind}{usual})"
        lines += textwrap.wrap(text, _COLUMNS, subsequent_indent=" " * (width + 4), drop_whitespace=bool(first))
    return "\n".join(lines) or "  no options"


def as_markdown(options: type) -> str:
    """Format options as a Markdown table."""
    rows = [[f"`{row.name}`", row.kind, f"`{row.default}`", row.help] for row in rows_of(options)]
    cells = [["option", "values", "default", "what it is"], ["---"] * 4, *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |\n" for row in cells)


def _shown(value: Any) -> str:
    if value is MISSING:
        return "required"
    if isinstance(value, Mapping) and value:
        return "{...}"
    return shown(list(value) if isinstance(value, tuple) else value)
