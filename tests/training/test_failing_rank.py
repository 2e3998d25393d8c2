"""A rank that raises ends the other, with its message, under every launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("failing_rank.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("launcher", "start_method", "rank", "where"),
    [
        (TORCHRUN, "popen", 1, "step"),
        ([sys.executable], "popen", 1, "start"),
        ([sys.executable], "popen", 0, "hang"),
        ([sys.executable], "spawn", 1, "step"),
    ],
    ids=["torchrun", "popen, at the start", "popen, the child hangs", "spawn"],
)
def test_no_rank_is_left(launcher: list[str], start_method: str, rank: int, where: str) -> None:
    process = subprocess.Popen(
        [*launcher, str(SCRIPT), start_method, str(rank), where],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    # The ranks share the pipe: communicate() returns when the last of them has closed it, well before the 10 minutes
    # that a rank sleeps and the 5 that a collective waits.
    output, _ = process.communicate(timeout=120)

    assert process.returncode != 0
    assert f"rank {rank} found something wrong" in output
    assert "AttributeError" not in output  # the shutdown raises nothing itself
