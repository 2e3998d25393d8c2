"""What ends a run on all ranks alike, and how a rank that is ended with another tells that from a user's wish."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


class Fault(Exception):
    """A reason for all ranks to end. Its text says it in full, so that a command prints that and no traceback."""


def note_failure(environ: Mapping[str, str] = os.environ) -> None:
    """Leave word for the other ranks on this node that this one has failed: torchrun ends them by SIGTERM."""
    if note := _note(environ):
        with suppress(OSError):
            note.touch()


def another_failed(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a rank on this node has failed, so that a SIGTERM is torchrun's own, and nobody has asked for a stop."""
    note = _note(environ)
    return note is not None and note.exists()


def _note(environ: Mapping[str, str]) -> Path | None:
    """A file beside those in which torchrun's ranks report: one folder for each of their starts."""
    report = environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(report).parents[1] / "syncbn-failed" if report else None
