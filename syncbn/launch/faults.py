"""Faults that end a run on all ranks, and notes by which a rank knows that another on its node has failed."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_FAILED = "syncbn-failed"
_RUNNING = "syncbn-running-"


class Fault(Exception):
    """A reason for all ranks to end. Its text is complete, so commands print it without a traceback."""


def note_start(environ: Mapping[str, str] = os.environ) -> None:
    """Note the process of this rank, so that the others on this node can tell when it was killed."""
    if folder := _folder(environ):
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            (folder / _own(environ)).write_text(str(os.getpid()))


def note_failure(environ: Mapping[str, str] = os.environ) -> None:
    """Note for the other ranks on this node, which the launcher ends by SIGTERM, that this one has failed."""
    if folder := _folder(environ):
        with suppress(OSError):
            (folder / _FAILED).touch()


def note_end(environ: Mapping[str, str] = os.environ) -> None:
    """Take back the note of `note_start`: this rank ends by itself, for whatever reason."""
    if folder := _folder(environ):
        with suppress(OSError):
            (folder / _own(environ)).unlink(missing_ok=True)
            if "TORCHELASTIC_ERROR_FILE" not in environ and not [*folder.glob(f"{_RUNNING}*")]:
                (folder / _FAILED).unlink(missing_ok=True)
                folder.rmdir()


def another_failed(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a rank on this node has failed or was killed, so that a SIGTERM comes from the launcher, not a user."""
    folder = _folder(environ)
    if folder is None or not folder.is_dir():
        return False
    return (folder / _FAILED).exists() or not all(map(_is_alive, folder.glob(f"{_RUNNING}*")))


def _folder(environ: Mapping[str, str]) -> Path | None:
    """A folder for each start: beside torchrun's reports of ranks, or of a step of SLURM's."""
    if report := environ.get("TORCHELASTIC_ERROR_FILE"):
        return Path(report).parents[1]
    if "SLURM_STEP_ID" not in environ or "SLURM_PROCID" not in environ:
        return None
    start = (environ.get(f"SLURM_{part}", "0") for part in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    return Path(tempfile.gettempdir(), f"syncbn-{os.getuid()}-{'.'.join(start)}")


def _own(environ: Mapping[str, str]) -> str:
    rank = environ.get("LOCAL_RANK") if "TORCHELASTIC_ERROR_FILE" in environ else environ.get("SLURM_LOCALID")
    return f"{_RUNNING}{rank}"


def _is_alive(note: Path) -> bool:
    """Whether the process of a note runs; one that has ended and isn't waited for yet doesn't."""
    try:
        pid = int(note.read_text() or os.getpid())  # empty while it is written
    except OSError:  # it has ended by itself
        return True
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return not Path("/proc/self").exists()
