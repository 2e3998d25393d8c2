"""Report this machine's hardware and software, prove that SyncBatchNorm is exact on it, and time it.

On one machine: syncbn doctor. On the ranks of a job: torchrun ... -m syncbn doctor, or srun syncbn doctor. The report
names no host, user or folder, so it can be attached to an issue. The exit code is 1 if something is wrong.
"""

from dataclasses import dataclass
from pathlib import Path

from syncbn import cli
from syncbn.cli.arguments import Parser
from syncbn.launch.leave import ends_at_once
from syncbn.launch.world import current_world
from syncbn.norm.core.options import Count, Positive, option
from syncbn.run.errors import user_mistakes

NEEDS = ()


@dataclass
class Options:
    """Options of `syncbn doctor`."""

    model: str | None = option(None, "a network of syncbn.models, such as resnet50: forecasts the cost of its messages")
    images: Count | None = option(None, "images per rank for model; by default 32 on a GPU and 2 on CPU")
    ranks: Count | None = option(None, "ranks to start on CPU without a launcher; 2 by default")
    seconds: Positive = option(60.0, "approximate time limit")
    output: Path = option(Path("doctor.json"), "file for the report as JSON")


PARSER = Parser("syncbn doctor", __doc__, Options)


def main() -> None:
    """Print the report, write it as JSON, and exit with 1 if something is wrong."""
    with ends_at_once():
        PARSER.main(examine)


def examine(arguments: list[str]) -> None:
    """As `main`, for the words of a command line.

    Args:
        arguments: options of `PARSER`.

    Raises:
        SystemExit: with code 1, if the report isn't ok.
    """
    with user_mistakes():
        options = PARSER.read(arguments)
        if options.output.is_dir():
            raise ValueError(
                f"output={options.output}: that is a folder; give a file's name, {options.output}/doctor.json"
            )
        options.output.parent.mkdir(parents=True, exist_ok=True)  # before a minute is spent on what can't be written

        from syncbn.machine import doctor

        report = doctor(model=options.model, images=options.images, ranks=options.ranks, seconds=options.seconds)
    if current_world().rank == 0:
        options.output.write_text(report.to_json(), encoding="utf-8")
        print(report.to_markdown())
        print(f"report: {options.output}")
    if not report.ok:
        raise SystemExit(1)


if __name__ == "__main__":
    cli.run("doctor")
