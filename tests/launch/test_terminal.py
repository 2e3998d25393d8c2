"""What is written to a closed terminal is discarded; a reader that leaves by itself is still an error."""

import os
import pty
import subprocess
import sys

import pytest

CODE = """
import os, signal, sys, time
from syncbn.launch import stop
from syncbn.launch.terminal import terminal_may_close
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # should the tests run under nohup
stop.install(deferred=True)
terminal_may_close()
sys.stdin.readline()
{before}
try:
    for _ in range(3):
        print("x" * 100, flush=True)
    sys.stderr.write("goes on")
except OSError as error:
    sys.stderr.write(type(error).__name__)
    os._exit(0)
"""


def said_after(output: int, close: int, before: str = "") -> str:
    """What a program says on stderr of its writing to `output`, after the other side `close` was closed."""
    command = [sys.executable, "-c", CODE.format(before=before)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        os.close(output)
        os.close(close)
        return process.communicate("\n", timeout=60)[1]


def test_before_any_signal_a_closed_terminal_is_written_to_in_vain() -> None:
    master, slave = pty.openpty()
    assert said_after(slave, master) == "goes on"


@pytest.mark.parametrize(
    ("before", "said"), [("", "BrokenPipeError"), ("os.kill(os.getpid(), signal.SIGHUP)", "goes on")]
)
def test_a_pipe_only_if_the_terminal_closes_at_the_same_time(before: str, said: str) -> None:
    read, write = os.pipe()
    assert said_after(write, read, before) == said
