"""Runs that lose one of their processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, SHORT, run_script


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_rank_is_started_again_and_the_run_goes_on_in_its_folder(tmp_path: Path) -> None:
    """torchrun --max-restarts, with resume=auto; the kill is kill -9."""
    script = str(REPOSITORY / "scripts" / "train.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launcher += ["--max-restarts=1"]
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


FAILING = """
import os, signal
import lightning.pytorch as L

class Fails(L.Callback):
    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and batch_idx == 2:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise LookupError("something is wrong here")
"""


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("how", "code", "cause"),
    [("error", 1, "LookupError: something is wrong here"), ("killed", 137, "was killed by SIGKILL")],
)
def test_the_end_of_one_rank_is_told_once(how: str, code: int, cause: str, tmp_path: Path) -> None:
    """By the rank, or the process that started it, and not by the other rank, which its launcher ends."""
    (tmp_path / "pyproject.toml").write_text('[tool.syncbn]\npackages = ["failing"]\n')
    (tmp_path / "failing.py").write_text(FAILING)
    callback = ["+callbacks.fails._target_=failing.Fails", f"+callbacks.fails.how={how}"]
    done = run_script(tmp_path, "train", "trainer=ddp", "callbacks=none", *callback, *SHORT)
    assert done.code == code
    assert done.err.count(cause) == 1
    assert done.err.count("Traceback") == (how == "error")
    assert "stopped by" not in done.err
    assert "left the process group" not in done.err


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
