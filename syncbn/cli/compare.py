"""Compare finished runs, as a table and as curves, without W&B.

Give folders of runs or of sweeps: syncbn compare outputs/*. The table shows the differences between the runs' configs
and their metrics; the plot shows their curves over epochs. Runs that differ by their seed alone are averaged: mean and
half of the 95 % interval by Student's t. A run counts with its best epoch's val/acc and val/miou, and with the last
value of another metric.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from syncbn import cli
from syncbn.cli.arguments import Parser
from syncbn.norm.core.options import option, required
from syncbn.run.comparison import TABLES, Comparison, check_suffix, compared, find_runs, write_table
from syncbn.run.curves import FIGURES, draw_curves
from syncbn.run.errors import UserError, user_mistakes

_IN_THE_TABLE = ("val/acc", "test/acc", "test/loss")
_DRAWN = ("val/acc", "val/loss")


@dataclass
class Options:
    """Options of `syncbn compare`."""

    folders: list[str] = required("of runs and of sweeps")
    metric: str | None = option(None, "metrics, such as val/loss,test/acc; accuracies and losses where it isn't given")
    seeds: Literal["average", "apart"] = option(
        "average", "runs that differ only in their seed: one averaged row, or a row each"
    )
    table: Path | None = option(None, "file for the table: .csv, .md or .tex (for booktabs)")
    plot: Path = option(Path("compare.png"), "file for the picture of the curves: .png, .pdf or .svg")


PARSER = Parser("syncbn compare", __doc__, Options, words="folders")


def main() -> None:
    """Read folders from the command line, print the table and save the plot."""
    PARSER.main(compare)


def compare(arguments: list[str]) -> None:
    """Print the table of runs, and save the plot.

    Args:
        arguments: folders, and options of `PARSER`.
    """
    with user_mistakes():
        options = PARSER.read(arguments)
        check_suffix("plot", options.plot, FIGURES)
        if options.table is not None:
            check_suffix("table", options.table, TABLES)
        if missing := [folder for folder in options.folders if not Path(folder).exists()]:
            raise UserError(f"no folder {', '.join(map(repr, missing))}: give those of runs, syncbn compare outputs/*")
        runs = find_runs(map(Path, options.folders))
        if not runs:
            raise UserError(
                f"no finished run in {', '.join(options.folders) or 'no folders'}: syncbn compare outputs/*"
            )
        present = list(dict.fromkeys(name for run in runs for name in run.metrics))
        if not present:
            raise UserError(f"no metric is logged in {', '.join(run.name for run in runs)}")
        named = [name.strip() for name in (options.metric or "").split(",") if name.strip()]
        own = [name for name in present if name.startswith(("val", "test"))]  # a guest's task's
        chosen = [named or [n for n in names if n in present] or own or present for names in (_IN_THE_TABLE, _DRAWN)]
        average = options.seeds == "average"
        table, drawn = (compared(runs, list(dict.fromkeys(metrics)), average=average) for metrics in chosen)
        print_table(table)
        for run, other in table.repeated:
            print(f"left out: {run} has the config and the seed of {other}")
        if options.table is not None:
            write_table(table, options.table)
            print(f"table: {options.table}")
        draw_curves(drawn, options.plot)
        print(f"plot: {options.plot}")


def print_table(comparison: Comparison) -> None:
    """Print a row for each group of runs: the overrides in which they differ, and metrics."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in comparison.header():
        table.add_column(Text(name))
    for row in comparison.rows():
        table.add_row(*map(Text, row))  # in a plain string, rich takes [a,b] for markup
    # Files and pipes get a width that truncates nothing.
    console = Console()
    (console if console.is_terminal else Console(width=400)).print(table)


if __name__ == "__main__":
    cli.run("compare")
