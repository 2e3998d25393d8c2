"""Compare a run's network on several ranks with one process.

Runs one training step on an unevenly split batch of the run's data. The exit code is 1 if the results differ.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from syncbn import cli
from syncbn.cli.arguments import OnRun, Parser
from syncbn.norm.core.options import Count, option
from syncbn.run.errors import user_mistakes

if TYPE_CHECKING:
    from syncbn.policy import VerifyReport


@dataclass
class Options(OnRun):
    """Options of `syncbn verify`."""

    ranks: Count = option(2, "processes to start on this machine's CPU")


PARSER = Parser("syncbn verify", __doc__, Options, overrides="overrides")


def main() -> None:
    """Read `run=<folder>`, print the verdict, and exit with 1 if it is bad."""
    PARSER.main(_verify_and_exit)


def verify(arguments: list[str]) -> "VerifyReport":
    """Print a run's report.

    Args:
        arguments: `run=<folder>`, and other options of `PARSER`.
    """
    with user_mistakes():
        options = PARSER.read(arguments)

        from syncbn.policy import verify as compare
        from syncbn.run.finished import open_run

        finished = open_run(options.run, options.checkpoint, options.data, options.overrides)
        report = compare(finished.net.train(), next(iter(finished.train_loader())), options.ranks)
    print(report)
    return report


def _verify_and_exit(arguments: list[str]) -> None:
    if not verify(arguments):
        raise SystemExit(1)


if __name__ == "__main__":
    cli.run("verify")
