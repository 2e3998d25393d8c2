"""A run whose terminal closes saves and stops; under `nohup` it goes on."""

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from syncbn.run.resume import LAST
from syncbn.training.checkpoint import load_checkpoint
from tests.cli.conftest import SHORT

# Without a bar, which shows what goes to stderr on the terminal.
QUIET = (*SHORT, "run_id=r", "callbacks=checkpoint", "trainer.enable_progress_bar=false")
TRAIN = (sys.executable, "-m", "syncbn", "train", *QUIET)
ON_RANKS = [
    pytest.param([], id="one process"),
    pytest.param(["trainer=ddp"], id="two ranks", marks=pytest.mark.distributed),
]


class Terminal:
    """A terminal in which a command runs; its errors go to the file `err`."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.master, slave = pty.openpty()
        errors = os.open(folder / "err", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=slave,
            stdout=slave,
            stderr=errors,
            start_new_session=True,
            preexec_fn=_control,
        )
        os.close(slave)
        os.close(errors)
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Close the window: its programs get SIGHUP, and can't write any more."""
        self._closing.set()
        self._reader.join()
        os.close(self.master)

    def _read(self) -> None:
        os.set_blocking(self.master, False)
        while not self._closing.wait(0.02):
            with suppress(OSError):
                os.read(self.master, 65536)


def _control() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


def check_that_it_saved(folder: Path) -> None:
    """Check that the run has said where it stopped, and that its last checkpoint is of there."""
    err = (folder / "err").read_text()
    assert "Traceback" not in err, err
    (step,) = re.findall(r"stopped by SIGHUP in epoch \d+ at step (\d+); to go on, add run_id=r resume=auto", err)
    assert load_checkpoint(folder / "outputs" / "r" / LAST)["global_step"] == int(step)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ON_RANKS)
def test_a_closed_terminal_stops_a_run_which_saves(tmp_path: Path, ranks: list[str]) -> None:
    terminal = Terminal([*TRAIN, *ranks, "trainer.max_epochs=1000"], tmp_path)
    last = tmp_path / "outputs" / "r" / LAST
    wait_until(last.exists)
    terminal.close()
    assert terminal.process.wait(60) == 128 + signal.SIGHUP
    check_that_it_saved(tmp_path)


@pytest.mark.slow
def test_so_does_one_whose_output_went_through_a_program_that_is_gone_too(tmp_path: Path) -> None:
    command = " ".join([*TRAIN, "trainer.max_epochs=1000"])
    terminal = Terminal(["bash", "-c", f"(trap : HUP; {command}; echo $? > code) | tee log"], tmp_path)
    last = tmp_path / "outputs" / "r" / LAST
    wait_until(last.exists)
    terminal.close()
    wait_until((tmp_path / "code").exists, 60)
    terminal.process.wait()
    assert (tmp_path / "code").read_text() == f"{128 + signal.SIGHUP}\n"
    check_that_it_saved(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ON_RANKS)
def test_under_nohup_it_goes_on(tmp_path: Path, ranks: list[str]) -> None:
    terminal = Terminal(["nohup", *TRAIN, *ranks, "trainer.max_epochs=8"], tmp_path)
    run = tmp_path / "outputs" / "r"
    wait_until((run / LAST).exists)
    terminal.close()
    assert not (run / "plots").exists()
    assert terminal.process.wait(120) == 0
    assert load_checkpoint(run / LAST)["epoch"] == 7
