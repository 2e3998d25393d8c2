"""Writes the tables of options in the pages of this folder, from the options' declarations: `make tables`.

A table stands between `<!-- options of norm=group -->`, or the dotted name of a class or function, and
`<!-- end of options -->`.
"""

import re
from pathlib import Path

from syncbn.norm.core.registry import our_options
from syncbn.run.describe import as_markdown
from syncbn.run.described import options_of

_TABLE = re.compile(r"(<!-- options of (?P<what>[\w.=]+) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """A page with its tables as the declarations are now."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{_table(found['what'])}\n{found[3]}", text)


def pages() -> list[Path]:
    """The Markdown files of this folder."""
    return sorted(Path(__file__).parent.rglob("*.md"))


def _table(what: str) -> str:
    options = our_options()[what.removeprefix("norm=")] if what.startswith("norm=") else options_of(what)
    if options is None:
        raise ValueError(f"no options of {what} are declared")
    return as_markdown(options)


if __name__ == "__main__":
    for page in pages():
        page.write_text(with_tables(page.read_text()))
