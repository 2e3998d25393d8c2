"""scripts/verify.py run=<folder>: is a run's network on several ranks the network in one process?"""

from typing import TYPE_CHECKING

from syncbn.cli import finished
from syncbn.run.errors import user_mistakes

if TYPE_CHECKING:
    from syncbn.policy import VerifyReport

USAGE = """\
Compare a run's network on ranks with one process: python scripts/verify.py run=outputs/<run_id> [key=value] ...

run=<folder>          the run's folder
ranks=<n>             processes to start on this machine's CPU; 2 by default
checkpoint=<path>     another checkpoint than checkpoints/best.ckpt
key.key=value         anything of the run's config, for example data.batch_size=64

One training step on a batch of the run's data, split unevenly. The exit code is 1 where they differ.
"""


def main() -> None:
    """Read `run=<folder>`, print the verdict, and end with exit code 1 if it is bad."""
    finished.main(USAGE, _verify_and_exit)


def verify(arguments: list[str]) -> "VerifyReport":
    """Print the report of a run.

    Args:
        arguments: `run=<folder>` and what `USAGE` says.
    """
    with user_mistakes():
        read = finished.read_arguments(arguments, "verify", ("ranks",))
        ranks = finished.positive_count("ranks", read.options.get("ranks", "2"))
        run = finished.open_run(read)

        from syncbn.policy import verify as compare

        report = compare(run.net.train(), next(iter(run.data.train_dataloader())), ranks)
    print(report)
    return report


def _verify_and_exit(arguments: list[str]) -> None:
    if not verify(arguments):
        raise SystemExit(1)
