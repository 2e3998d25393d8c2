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
        if hasattr(select, "poll") and not reader_left(1):  # a pipe to a worker, say
            raise
        discard(1)  # Python writes what is left when it ends
        raise SystemExit(_LIKE_SIGPIPE) from None


def reader_left(output: int) -> bool:
    """Whether the program or the terminal that reads file descriptor `output` is gone; False where it can't be told."""
    if not hasattr(select, "poll"):
        return False
    state = select.poll()
    state.register(output, 0)
    return bool(state.poll(0))


def discard(output: int) -> None:
    """Have file descriptor `output` written to nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)


def can_say_everything() -> None:
    """Write letters that the output's encoding lacks as escapes, not as errors: a locale may know ASCII alone."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None and not (sys.stdout.encoding or "").lower().startswith("utf"):
        reconfigure(errors="backslashreplace")
