"""Jobs of a sweep of which some fail: the others run, as in plain Hydra, and the end lists those that failed."""

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from syncbn.launch.faults import another_failed
from syncbn.launch.leave import exit_code
from syncbn.launch.relaunch import run_under_torchrun
from syncbn.launch.stop import SIGNALS, Stopped
from syncbn.launch.world import current_world
from syncbn.run.compose import SWEEPER

VARIABLE = "SYNCBN_SWEEP"  # a folder in which ranks note their job, of the process that starts them
_FIRST = "first"
_BEGUN = "begun-"


def run_on_ranks(ranks: int, words: Sequence[str], jobs: int) -> NoReturn:
    """Run a sweep on `ranks` processes, which go through its jobs together.

    A rank that fails leaves the others in the middle of a message, and torchrun ends them. So they are started again
    for the jobs after the one that failed.
    """
    codes: dict[str, int] = {}
    first = 0
    with tempfile.TemporaryDirectory(prefix="syncbn-sweep-") as folder:
        os.environ[VARIABLE] = folder
        while first < jobs:
            Path(folder, _FIRST).write_text(str(first))
            try:
                run_under_torchrun(ranks, words)
            except SystemExit as end:
                code = int(end.code or 0)
            if not code:
                break
            number, where = _slowest(Path(folder))
            if code - 128 in SIGNALS or number < first:  # stopped, or failed before the job
                raise SystemExit(code)
            codes[f"{number} in {where}"] = code
            first = number + 1
    end_of(codes, jobs)
    raise SystemExit(0)


def _slowest(folder: Path) -> tuple[int, str]:
    """Number and folder of the job that the ranks do: some may have begun the next one."""
    notes = [file.read_text().split("\n", 1) for file in folder.iterdir() if file.name != _FIRST]
    return min(((int(number), where) for number, where in notes), default=(-1, ""))


def end_of(codes: dict[str, int], jobs: int) -> None:
    """List the jobs that failed, and exit with the first one's code; return if there are none."""
    if codes:
        list_failed({job: f"exit code {code}" for job, code in codes.items()}, jobs)
        raise SystemExit(next(iter(codes.values())))


def list_failed(ends: dict[str, str], jobs: int) -> None:
    """Print the jobs that failed, and how they ended."""
    failed = ", ".join(f"{job}: {end}" for job, end in ends.items())
    print(f"error: {len(ends)} of {jobs} job(s) failed: {failed}", file=sys.stderr)


class Sweep:
    """The jobs of a sweep in this process.

    Args:
        jobs: number of jobs.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.codes: dict[str, int] = {}
        folder = os.environ.get(VARIABLE)
        self._folder = Path(folder) if folder else None
        self._first = int((self._folder / _FIRST).read_text()) if self._folder else 0

    def is_done(self) -> bool:
        """Whether the current job has run, or failed, before the ranks were started again; if not, note it."""
        hydra: Any = HydraConfig.get()
        if hydra.mode is not RunMode.MULTIRUN or self._folder is None:
            return False
        if hydra.job.num < self._first:
            with suppress(OSError):  # Hydra has made its folder, and one with a run in it is kept
                Path(hydra.runtime.output_dir).rmdir()
            return True
        (self._folder / f"rank-{current_world().rank}").write_text(f"{hydra.job.num}\n{hydra.runtime.output_dir}")
        return False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let the current job fail alone: not in a search, which needs its result, nor on ranks, which end together."""
        hydra: Any = HydraConfig.get()
        if hydra.mode is not RunMode.MULTIRUN or hydra.sweeper._target_ != SWEEPER or self.jobs == 1:
            yield
            return
        try:
            yield
        except Stopped:
            raise
        except (SystemExit, Exception) as error:
            if current_world().world_size > 1:
                if self._folder is None:
                    self._say_what_is_left(hydra.job.num)
                raise
            if isinstance(error, Exception):
                traceback.print_exc()
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
            self.codes[f"{hydra.job.num} in {hydra.runtime.output_dir}"] = code
            if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
                with suppress(TimeoutError):  # W&B has said so, and how to send the rest
                    wandb.finish(exit_code=code)  # the next job's would go into it

    def _say_what_is_left(self, number: int) -> None:
        if (left := self.jobs - number - 1) and not another_failed():
            print(
                f"error: job {number} of this sweep failed, and the {left} after it aren't run, since a launcher ends "
                "all ranks with one: leave it out (syncbn train -m ...), and they are",
                file=sys.stderr,
            )


@contextmanager
def noted(folder: Path) -> Iterator[None]:
    """Note the current job while it runs, for the process that waits: the note of one that is killed stays."""
    hydra: Any = HydraConfig.get()
    note, where = folder / f"{_BEGUN}{hydra.job.num}", hydra.runtime.output_dir
    with suppress(OSError):
        note.write_text(f"killed, or cancelled\n{where}")
    try:
        yield
    except Stopped:
        raise
    except (SystemExit, Exception) as end:
        code = exit_code(end) if isinstance(end, SystemExit) else 1
        with suppress(OSError):
            note.write_text(f"exit code {code}\n{where}") if code else note.unlink(missing_ok=True)
        raise
    with suppress(OSError):
        note.unlink(missing_ok=True)


def failed_notes(folder: Path) -> dict[str, str]:
    """How the jobs ended that a launcher has run and that failed, from their notes."""
    notes = sorted(folder.glob(f"{_BEGUN}*"), key=_number)
    return {f"{_number(note)} in {where}": end for note in notes for end, where in [note.read_text().split("\n", 1)]}


def forget_failed(folder: Path) -> None:
    """Remove the notes of an earlier start of the sweep."""
    for note in folder.glob(f"{_BEGUN}*"):
        note.unlink()


def _number(note: Path) -> int:
    return int(note.name.removeprefix(_BEGUN))
