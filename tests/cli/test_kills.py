"""A run that is killed and resumed again and again equals an uninterrupted one."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from syncbn.run.resume import LAST
from syncbn.training.checkpoint import load_checkpoint
from tests.cli.conftest import REPOSITORY
from tests.cli.test_faults import rank_of
from tests.soak.compare import TIMES

RUN = (
    "run_id=r",
    "resume=auto",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
    "test=false",
)
# With the default callbacks.
CLASSIFICATION = ("model.width=4",)
GAN = ("experiment=dcgan_digits", "model.width=8")
TWO_RANKS = ("trainer=ddp", "data.batch_size=16")


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *options, *RUN]
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_rows(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    metrics = folder / "outputs" / "r" / "metrics.csv"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) > count:
            return
        time.sleep(0.01)
    raise TimeoutError(f"{metrics} has no {count} rows, and the run ended with {process.returncode}")


def processes_in(folder: Path) -> list[str]:
    """Processes that run in `folder`, by name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (process / "cwd").readlink() == folder.resolve():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    """Rows of a table without times."""
    path = folder / "outputs" / "r" / table
    with path.open(newline="") as file:
        kept = [{k: v for k, v in row.items() if v and not k.startswith(TIMES)} for row in csv.DictReader(file)]
    return [row for row in kept if row.keys() - {"epoch", "step"}]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        CLASSIFICATION,
        GAN,
        pytest.param((*CLASSIFICATION, *TWO_RANKS), marks=pytest.mark.distributed),
        pytest.param((*GAN, *TWO_RANKS), marks=pytest.mark.distributed),
    ],
    ids=["classification", "gan", "classification on two ranks", "gan on two ranks"],
)
def test_three_kills_leave_no_trace(tmp_path: Path, options: tuple[str, ...]) -> None:
    with start(tmp_path / "whole", *options) as whole:
        _, err = whole.communicate(timeout=200)
        assert whole.returncode == 0, err
    for kill, logged in ((signal.SIGTERM, 10), (signal.SIGUSR1, 45), (signal.SIGKILL, 80)):
        with start(tmp_path / "killed", *options) as process:
            wait_for_rows(process, tmp_path / "killed", logged)
            lost_rank = kill == signal.SIGKILL and "trainer=ddp" in options
            os.kill(rank_of(process.pid, 1) if lost_rank else process.pid, kill)
            _, err = process.communicate(timeout=100)
        assert process.returncode == (-kill if kill == signal.SIGKILL and not lost_rank else 128 + kill), err
        assert not processes_in(tmp_path / "killed")
        if kill != signal.SIGKILL:
            assert f"stopped by {kill.name} in epoch" in err
    with start(tmp_path / "killed", *options) as process:
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err

    for table in ("metrics.csv", "norm_statistics.csv"):
        assert rows(tmp_path / "killed", table) == rows(tmp_path / "whole", table)
    ends = [load_checkpoint(tmp_path / name / "outputs" / "r" / LAST) for name in ("whole", "killed")]
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_whose_launcher_is_killed_save_and_end(tmp_path: Path) -> None:
    with start(tmp_path, *CLASSIFICATION, *TWO_RANKS, "trainer.max_epochs=1000") as process:
        wait_for_rows(process, tmp_path, 5)
        process.kill()
        _, err = process.communicate(timeout=100)  # until both ranks have closed it
    assert not processes_in(tmp_path)
    (step,) = re.findall(r"stopped by SIGTERM in epoch \d+ at step (\d+)", err)
    assert load_checkpoint(tmp_path / "outputs" / "r" / LAST)["global_step"] == int(step)
