"""Measure, print and write: `python -m benchmarks [part ...]`. The machine should have nothing else to do."""

import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from benchmarks import compiled, importing, layers, memory, norms, report, step, trainer
from benchmarks.rows import Row

PARTS: dict[str, Callable[[], list[Row]]] = {
    "layers": layers.measure,
    "step": step.measure,
    "trainer": trainer.measure,
    "norms": norms.measure,
    "memory": memory.measure,
    "compiled": compiled.measure,
    "importing": importing.measure,
}


def main(parts: list[str]) -> None:
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        sys.exit(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    console = Console()
    for part in parts or PARTS:
        rows = PARTS[part]()
        console.print(table(rows))
        report.write(report.results_of(part, rows), list(PARTS))


def table(rows: list[Row]) -> Table:
    """What is printed of the rows."""
    shown = Table()
    for column in ("ours", "beside", "ours takes", "theirs", "ratio", "at most", ""):
        shown.add_column(column, justify="left" if column in ("ours", "beside") else "right")
    area = None
    for row in rows:
        if row.area != area:
            area = row.area
            shown.add_section()
            shown.add_row(f"[bold]{area}")
        spread = f" ({row.low:.2f}-{row.high:.2f})" if row.low != row.high else ""
        limit = "" if row.limit is None else f"{row.limit:.3g}"
        ours, theirs = (f"{value:.4g} {row.unit}" for value in (row.ours, row.theirs))
        shown.add_row(row.what, row.beside, ours, theirs, f"{row.ratio:.2f}{spread}", limit, row.verdict)
    return shown


if __name__ == "__main__":
    main(sys.argv[1:])
