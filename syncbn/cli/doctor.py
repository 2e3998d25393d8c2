"""Say what this machine has, prove that SyncBatchNorm is exact on it, and time it.

On one machine: syncbn doctor. In the ranks of a job: torchrun ... -m syncbn doctor, or srun syncbn doctor. The report
names no host, user or folder, so that it can be attached to an issue. The exit code is 1 where something is wrong.
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
    """Of `syncbn doctor`."""

    model: str | None = option(None, "a network of syncbn.models, resnet50 say: what its messages will cost")
    images: Count | None = option(None, "images of a rank, for model; 32 on a GPU, 2 on CPU where it isn't given")
    ranks: Count | None = option(None, "ranks to start on CPU, where no launcher has started any; 2 if it isn't given")
    seconds: Positive = option(60.0, "how long it may take, about")
    output: Path = option(Path("doctor.json"), "the report as JSON")


PARSER = Parser("syncbn doctor", __doc__, Options)


def main() -> None:
    """Print the report, write it as JSON, and end with exit code 1 where something is wrong."""
    with ends_at_once():
        PARSER.main(examine)


def examine(arguments: list[str]) -> None:
    """The same, for a command line that was split.

    Args:
        arguments: what `PARSER` says.

    Raises:
        SystemExit: with 1, where the report isn't ok.
    """
    with user_mistakes():
        options = PARSER.read(arguments)

        from syncbn.machine import doctor

        report = doctor(model=options.model, images=options.images, ranks=options.ranks, seconds=options.seconds)
    if current_world().rank == 0:
        options.output.write_text(report.to_json())
        print(report.to_markdown())
        print(f"report: {options.output}")
    if not report.ok:
        raise SystemExit(1)


if __name__ == "__main__":
    cli.run("doctor")
