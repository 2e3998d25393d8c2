"""Faults that end a run on all ranks, and notes by which ranks ended by torchrun recognize them."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


class Fault(Exception):
    """A reason for all ranks to end. Its text is complete, so commands print it without a traceback."""


def note_failure(environ: Mapping[str, str] = os.environ) -> None:
    """Note for the other ranks on this node, which torchrun ends by SIGTERM, that this one has failed."""
    if note := _note(environ):
        with suppress(OSError):
            note.touch()


def another_failed(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a rank on this node has failed, so that a SIGTERM comes from torchrun instead of a user."""
    note = _note(environ)
    return note is not None and note.exists()


def _note(environ: Mapping[str, str]) -> Path | None:
    """File beside torchrun's reports of ranks, in a folder for each start."""
    report = environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(report).parents[1] / "syncbn-failed" if report else None
