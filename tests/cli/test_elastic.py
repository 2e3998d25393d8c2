"""torchrun --nnodes=1:2 with nodes that join and leave: two agents on this machine, and one run that continues."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY

RUN = (
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1000",
    "trainer.limit_train_batches=8",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
    "callbacks=[checkpoint,lr_monitor]",
    "norm=layer",
    "model.width=4",
    "resume=auto",
)


@contextmanager
def node(folder: Path, name: str, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a torchrun agent with one rank in its own session; the rank's output is in `<name>.log`."""
    rendezvous = ["--rdzv-id=job", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--local-addr=localhost"]
    patience = "join_timeout=120,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=5"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3"]
    command += [*rendezvous, f"--rdzv-conf={patience},is_host={int(name == 'a')}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment.pop("SYNCBN_RUN_ID", None)
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [*command, str(REPOSITORY / "scripts" / "train.py"), *RUN],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a node: its agent and its ranks at once."""
    ranks = [rank for rank in Path("/proc").glob("[0-9]*") if parent_of(rank) == process.pid]
    process.kill()
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.kill(int(rank.name), signal.SIGKILL)
    process.wait()


def parent_of(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return None


def until(true: Callable[[], bool], what: Path) -> None:
    deadline = time.monotonic() + 200
    while not true():
        assert time.monotonic() < deadline, what.read_text()
        time.sleep(0.1)


def steps(folder: Path) -> list[int]:
    path = folder / "outputs" / "torchrun-job" / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("lr-SGD/pg1")]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)  # four starts of a run, one after the other
def test_a_run_goes_on_as_nodes_come_and_go_with_the_same_global_batches(tmp_path: Path) -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = int(server.getsockname()[1])
    log = tmp_path / "a.log"
    with node(tmp_path, "a", port) as first:
        until(lambda: len(steps(tmp_path)) > 2, log)
        with node(tmp_path, "b", port) as second:
            until(lambda: "processes:     2 on cpu" in both(tmp_path), log)
            seen = len(steps(tmp_path))
            until(lambda: len(steps(tmp_path)) > seen + 16, log)  # an epoch has 8, and a checkpoint at its end
            end(second)
        until(lambda: both(tmp_path).count("processes:     1 on cpu") == 2, log)
        seen = len(steps(tmp_path))
        until(lambda: len(steps(tmp_path)) > seen + 2, log)
        first.send_signal(signal.SIGTERM)
        first.wait(timeout=60)

    text = both(tmp_path)
    assert "batch size:    16 on each of 2 rank(s), to keep the global batches of 32 that 1 rank(s) began with" in text
    assert "batch size:    32 on each of 1 rank(s), to keep the global batches of 32 that 2 rank(s) began with" in text
    (joined,) = re.findall(r"stopped by SIGTERM in epoch \d+ at step (\d+).*\n(?:.*\n)*?processes:     2", text)
    assert f"resumed:       after step {joined}" in text  # a node that joins costs no batch
    assert [run.name for run in (tmp_path / "outputs").iterdir()] == ["torchrun-job"]
    assert steps(tmp_path) == list(range(len(steps(tmp_path))))


def both(folder: Path) -> str:
    """Output of both nodes' ranks; the first rank may be on either."""
    return "".join(log.read_text() for log in sorted(folder.glob("*.log")))
