"""What a command prints, where it goes to a terminal that may close."""

import errno
import sys
from collections.abc import Callable
from typing import Any, TextIO

from syncbn.launch import pipes, stop

_SAME_HANGUP_S = 0.5  # the signal of a closed terminal may come after the end of a `| tee` in it


class _Output:
    """A text stream; once the terminal it goes to has closed, what is written to it is discarded.

    An error there would end a run before it has saved where it can resume.
    """

    may_close = True

    def __init__(self, stream: TextIO, output: int) -> None:
        self._stream = stream
        self._output = output

    def write(self, text: str) -> int:
        return self._unless_closed(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._unless_closed(self._stream.flush)

    def _unless_closed(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except OSError as error:
            closed = error.errno == errno.EIO or (error.errno == errno.EPIPE and stop.hung_up(_SAME_HANGUP_S))
            if not closed or not pipes.reader_left(self._output):
                raise
            pipes.discard(self._output)
            return act()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def terminal_may_close() -> None:
    """Discard what this process prints once its terminal has closed."""
    for output, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not None and not hasattr(stream, "may_close"):  # None where the file is closed
            setattr(sys, name, _Output(stream, output))
