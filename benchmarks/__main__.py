"""Measure, print and write: `python -m benchmarks [part ...]`. Needs an otherwise idle machine."""

import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from benchmarks import compiled, exchange, importing, layers, memory, norms, overlap, report, step, trainer
from benchmarks.rows import Row, shown

PARTS: dict[str, Callable[[], list[Row]]] = {
    "exchange": exchange.measure,
    "layers": layers.measure,
    "step": step.measure,
    "overlap": overlap.measure,
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
    """Format the rows for printing."""
    printed = Table()
    for column in ("ours", "beside", "ours takes", "theirs", "ratio", "at most", ""):
        printed.add_column(column, justify="left" if column in ("ours", "beside") else "right")
    area = None
    for row in rows:
        if row.area != area:
            area = row.area
            printed.add_section()
            printed.add_row(f"[bold]{area}")
        spread = f" ({shown(row.low)}-{shown(row.high)})" if row.low != row.high else ""
        limit = "" if row.limit is None else f"{row.limit:.3g}"
        ours, theirs = (f"{value:.4g} {row.unit}" for value in (row.ours, row.theirs))
        printed.add_row(row.what, row.beside, ours, theirs, f"{shown(row.ratio)}{spread}", limit, row.verdict)
    return printed


if __name__ == "__main__":
    main(sys.argv[1:])
