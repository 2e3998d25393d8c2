"""What a command prints, where it goes to another program."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LIKE_SIGPIPE = 141  # what a shell reports of a program that the signal ended


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """End quietly where the reader of the output has seen enough: `syncbn options | head -1`."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():  # a pipe to a worker, say
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes what is left when it ends
        raise SystemExit(_LIKE_SIGPIPE) from None


def _reader_left() -> bool:
    if not hasattr(select, "poll"):
        return True
    output = select.poll()
    output.register(1, 0)
    return bool(output.poll(0))


def can_say_everything() -> None:
    """Write letters that the output's encoding lacks as escapes, not as errors: a locale may know ASCII alone."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None and not (sys.stdout.encoding or "").lower().startswith("utf"):
        reconfigure(errors="backslashreplace")
