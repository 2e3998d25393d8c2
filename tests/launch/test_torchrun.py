"""torchrun's agent passes on the signals of `PET_SIGNALS_TO_HANDLE` and waits `PET_SHUTDOWN_TIMEOUT`, on any torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch.distributed.launcher.api import LaunchConfig

from syncbn.launch.torchrun import read_variables

# A rank that ends at SIGUSR1, notes SIGHUP, and takes no notice of SIGTERM.
RANK = """
import signal, sys, time
from pathlib import Path

folder = Path(sys.argv[1])
signal.signal(signal.SIGUSR1, lambda *_: sys.exit((folder / "told").touch()))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
(folder / "began").write_text("ignores SIGHUP" if hangup else "dies of SIGHUP")
while not (folder / "end").exists():
    time.sleep(0.02)
(folder / "ended").touch()
"""


@contextmanager
def torchrun(folder: Path, *nohup: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """torchrun with one rank, which has begun."""
    (folder / "rank.py").write_text(RANK)
    command = [*nohup, sys.executable, "-m", "syncbn.launch.torchrun", "--standalone", "rank.py", str(folder)]
    with subprocess.Popen(command, cwd=folder, env={**os.environ, **environ}, stderr=subprocess.DEVNULL) as agent:
        try:
            deadline = time.monotonic() + 60
            while not (folder / "began").exists() or not (folder / "began").read_text():
                assert agent.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield agent
        finally:
            (folder / "end").touch()
            agent.kill()


def test_sigusr1_reaches_the_rank(tmp_path: Path) -> None:
    with torchrun(tmp_path, PET_SIGNALS_TO_HANDLE="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1") as agent:
        agent.send_signal(signal.SIGUSR1)
        agent.wait(25)
        assert (tmp_path / "told").exists()
        assert not (tmp_path / "ended").exists()


def test_a_signal_that_is_not_named_stays_as_it_was(tmp_path: Path) -> None:
    with torchrun(tmp_path, "nohup", PET_SIGNALS_TO_HANDLE="SIGTERM,SIGINT,SIGUSR1") as agent:
        assert (tmp_path / "began").read_text() == "ignores SIGHUP"
        agent.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        (tmp_path / "end").touch()
        assert agent.wait(25) == 0
        assert (tmp_path / "ended").exists()


def test_a_rank_has_so_long_to_end(tmp_path: Path) -> None:
    with torchrun(tmp_path, PET_SHUTDOWN_TIMEOUT="1") as agent:
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(25) != 0  # torchrun's own would be 30 s
        assert not (tmp_path / "ended").exists()


def test_a_wrong_number_of_seconds_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "syncbn.launch.torchrun", "--standalone", "rank.py"]
    environment = {**os.environ, "PET_SHUTDOWN_TIMEOUT": "two minutes"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "two minutes" in done.stderr


def test_so_is_a_name_that_is_no_signal_s_where_torch_does_not_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(LaunchConfig, "signals_to_handle", raising=False)
    monkeypatch.setenv("PET_SIGNALS_TO_HANDLE", "SIGTERM,USR1")
    with pytest.raises(ValueError, match="PET_SIGNALS_TO_HANDLE has 'USR1'"):
        read_variables()
