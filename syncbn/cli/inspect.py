"""Measure the batch norms of a finished run on its training data or on another domain.

Prints a table and warnings, each with a page in docs/warnings, and writes norm_report/report.md and norms.png into the
run's folder. With data=<choice> it measures another domain and its drift from the run's own.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from syncbn import cli
from syncbn.cli.arguments import OnRun, Parser
from syncbn.norm.core.options import Count, option
from syncbn.run.errors import user_mistakes

if TYPE_CHECKING:
    from syncbn.policy import NormReport


@dataclass
class Options(OnRun):
    """Options of `syncbn inspect`."""

    max_batches: Count = option(20, "training batches to measure")


PARSER = Parser("syncbn inspect", __doc__, Options, overrides="overrides")


def main() -> None:
    """Read `run=<folder>` and print the report."""
    PARSER.main(inspect)


def inspect(arguments: list[str]) -> "NormReport":
    """Print and write a run's report.

    Args:
        arguments: `run=<folder>`, and other options of `PARSER`.
    """
    with user_mistakes():
        options = PARSER.read(arguments)

        from syncbn.policy import inspect as measure
        from syncbn.run.finished import open_run
        from syncbn.training.checkpoint import load_checkpoint

        finished = open_run(options.run, options.checkpoint, options.data, options.overrides)
        own = open_run(options.run, options.checkpoint, None, options.overrides) if options.data else None
        report = measure(
            finished.net,
            finished.train_loader(),
            reference=own.train_loader() if own else None,
            max_batches=options.max_batches,
            steps=load_checkpoint(finished.checkpoint).get("global_step"),
        )
    folder = finished.folder / "norm_report"
    report.plot(folder / "norms.png")
    (folder / "report.md").write_text(report.to_markdown(), encoding="utf-8")
    _print(report)
    print(f"report:        {folder}/{{report.md,norms.png}}")
    return report


def _print(report: "NormReport") -> None:
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=400)).print(report.to_rich())
    for warning in report.warnings:
        print(f"warning: {warning} (docs/warnings/{warning.identifier}.md)")
    print(f"{len(report.warnings)} warning(s)")


if __name__ == "__main__":
    cli.run("inspect")
