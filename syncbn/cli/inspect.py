"""scripts/inspect.py run=<folder>: a finished run's batch norms, measured on its training data or on another domain."""

from dataclasses import replace
from typing import TYPE_CHECKING

from syncbn.cli import finished
from syncbn.run.errors import user_mistakes

if TYPE_CHECKING:
    from syncbn.policy import NormReport

USAGE = """\
Measure the batch norms of a finished run: python scripts/inspect.py run=outputs/<run_id> [key=value] ...

run=<folder>          the run's folder
data=<choice>         inspect another domain, a choice of conf/data, and its drift from the run's own
checkpoint=<path>     another checkpoint than checkpoints/best.ckpt
max_batches=<n>       training batches to measure; 20 by default
key.key=value         anything of the run's config

Prints a table and the warnings, each with a page in docs/warnings, and writes norm_report/report.md and norms.png into
the run's folder.
"""


def main() -> None:
    """Read `run=<folder>` and print the report."""
    finished.main(USAGE, inspect)


def inspect(arguments: list[str]) -> "NormReport":
    """Print and write the report of a run.

    Args:
        arguments: `run=<folder>` and what `USAGE` says.
    """
    with user_mistakes():
        read = finished.read_arguments(arguments, "inspect", ("max_batches",))
        max_batches = finished.positive_count("max_batches", read.options.get("max_batches", "20"))
        run = finished.open_run(read)
        reference = finished.open_run(replace(read, choices={})).data.train_dataloader() if read.choices else None

        from syncbn.policy import inspect as measure
        from syncbn.training.checkpoint import load_checkpoint

        report = measure(
            run.net,
            run.data.train_dataloader(),
            reference=reference,
            max_batches=max_batches,
            steps=load_checkpoint(run.checkpoint).get("global_step"),
        )
    folder = run.folder / "norm_report"
    report.plot(folder / "norms.png")
    (folder / "report.md").write_text(report.to_markdown())
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
