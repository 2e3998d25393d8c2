"""A run stopped by a signal reports it, exits with the signal's code, and resumes where it was."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from syncbn.run.resume import LAST
from syncbn.training.checkpoint import load_checkpoint
from tests.cli.conftest import REPOSITORY, SHORT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "stop"),
    [
        ([], signal.SIGTERM),
        ([], signal.SIGINT),
        pytest.param(["trainer=ddp"], signal.SIGTERM, marks=pytest.mark.distributed),
        pytest.param(["trainer=ddp"], signal.SIGINT, marks=pytest.mark.distributed),
        pytest.param(["trainer=ddp"], signal.SIGUSR2, marks=pytest.mark.distributed),
        pytest.param(["trainer=ddp_sim"], signal.SIGUSR1, marks=pytest.mark.distributed),
    ],
    ids=[
        "SIGTERM",
        "Ctrl-C",
        "SIGTERM on two ranks",
        "Ctrl-C on two ranks",
        "SIGUSR2 on two ranks",
        "SIGUSR1 on two spawned ranks",
    ],
)
def test_a_stopped_run_ends_with_the_signals_code_and_says_how_to_go_on(
    tmp_path: Path, arguments: list[str], stop: signal.Signals
) -> None:
    script = str(REPOSITORY / "scripts" / "train.py")
    command = [
        sys.executable,
        script,
        "run_id=r",
        *SHORT,
        "trainer.max_epochs=1000",
        "callbacks=checkpoint",
        *arguments,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                break
        process.send_signal(stop)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + stop
    assert err.count("to go on, add run_id=r resume=auto") == 1
    assert "Traceback" not in err
    (step,) = re.findall(rf"stopped by {stop.name} in epoch \d+ at step (\d+)", err)
    assert load_checkpoint(tmp_path / "outputs" / "r" / LAST)["global_step"] == int(step)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_stopped_before_it_trains_says_so_too(tmp_path: Path) -> None:
    script = str(REPOSITORY / "scripts" / "train.py")
    command = [sys.executable, script, "run_id=r", "trainer=ddp", *SHORT, "trainer.max_epochs=1000"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(3)  # the ranks are importing what they need; on a fast machine, training already
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.count("to go on, add run_id=r resume=auto") == 1
