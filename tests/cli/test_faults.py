"""Runs that lose one of their processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, SHORT


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_rank_is_started_again_and_the_run_goes_on_in_its_folder(tmp_path: Path) -> None:
    """torchrun --max-restarts, with resume=auto; the kill is kill -9."""
    script = str(REPOSITORY / "scripts" / "train.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"]
    options = [*SHORT, "trainer.max_epochs=4", "trainer=ddp", "resume=auto", "callbacks=checkpoint"]
    # Workers that torchrun restarts may read an address that the first ones left in its store.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment.pop("SYNCBN_RUN_ID", None)
    with subprocess.Popen(
        [*launcher, script, *options],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as agent:
        assert agent.stdout is not None
        for line in agent.stdout:
            if line.startswith("epoch 2/"):
                break
        os.kill(rank_of(agent.pid, 1), signal.SIGKILL)
        rest = agent.stdout.read()
        assert agent.wait(timeout=120) == 0
    (step,) = re.findall(r"resumed:       after step (\d+)", rest)
    assert int(step) >= 4  # the first epoch was saved for sure
    assert rest.count("test accuracy:") == 1
    assert len(list((tmp_path / "outputs").iterdir())) == 1


def rank_of(agent: int, rank: int) -> int:
    """The process of a rank among torchrun's children."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (process / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if parent == agent and f"RANK={rank}".encode() in variables:
                return int(process.name)
    raise TimeoutError(f"torchrun has no rank {rank}")
