"""A run that is stopped from outside says so, ends with the signal's code, and goes on where it was."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, SHORT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "stop"),
    [
        ([], signal.SIGTERM),
        ([], signal.SIGINT),
        pytest.param(["trainer=ddp"], signal.SIGTERM, marks=pytest.mark.distributed),
    ],
    ids=["SIGTERM", "Ctrl-C", "SIGTERM on two ranks"],
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
