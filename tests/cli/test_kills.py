"""A run that is killed again and again, and goes on each time, is the run that was left alone."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from syncbn.launch.resume import LAST
from syncbn.training.checkpoint import load_checkpoint
from tests.cli.conftest import REPOSITORY
from tests.cli.test_faults import rank_of

RUN = (
    "run_id=r",
    "resume=auto",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
    "test=false",
)
CLASSIFICATION = ("callbacks=[checkpoint,lr_monitor,norm_statistics]", "model.width=4")
GAN = (
    "experiment=dcgan_digits",
    "callbacks=[last_checkpoint,lr_monitor,norm_statistics,sample_grids]",
    "model.width=8",
)
TWO_RANKS = ("trainer=ddp", "data.batch_size=16")


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *options, *RUN]
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True)


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    path = folder / "outputs" / "r" / table
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
        assert whole.wait(timeout=200) == 0
    for kill, logged in ((signal.SIGTERM, 10), (signal.SIGUSR1, 45), (signal.SIGKILL, 80)):
        with start(tmp_path / "killed", *options) as process:
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                metrics = tmp_path / "killed" / "outputs" / "r" / "metrics.csv"
                if metrics.exists() and len(metrics.read_text().splitlines()) > logged:
                    break
                time.sleep(0.01)
            lost_rank = kill == signal.SIGKILL and "trainer=ddp" in options
            os.kill(rank_of(process.pid, 1) if lost_rank else process.pid, kill)
        assert process.returncode == (-kill if kill == signal.SIGKILL and not lost_rank else 128 + kill)
    with start(tmp_path / "killed", *options) as process:
        assert process.wait(timeout=200) == 0

    for table in ("metrics.csv", "norm_statistics.csv"):
        assert rows(tmp_path / "killed", table) == rows(tmp_path / "whole", table)
    ends = [load_checkpoint(tmp_path / name / "outputs" / "r" / LAST) for name in ("whole", "killed")]
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name
