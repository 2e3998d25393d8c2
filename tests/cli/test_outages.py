"""Messages when a run's environment fails: a loader's worker, a rank's process, the network, W&B."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import API_KEY, REPOSITORY, SHORT
from tests.cli.test_faults import rank_of
from tests.cli.wandb_server import Outage, Server, serving
from tests.data.image_files import write_images

pytestmark = pytest.mark.slow
SCRIPT = [sys.executable, str(REPOSITORY / "scripts" / "train.py")]
LONG = (*SHORT, "trainer.max_epochs=100000", "trainer.limit_train_batches=null", "test=false")
KILLED = r"DataLoader worker \(pid.*\) (is killed by signal: Killed|exited unexpectedly)"  # forked, or not


@contextmanager
def running(
    folder: Path, *arguments: str, prefix: tuple[str, ...] = (), **environ: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a command with its messages in `folder/log`; it is killed at the end."""
    unset = ("SYNCBN_RUN_ID", "WANDB_MODE", "WANDB_API_KEY")
    inherited = {key: value for key, value in os.environ.items() if key not in unset}
    environment = {**inherited, "OMP_NUM_THREADS": "1", **environ}
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*prefix, *SCRIPT, *arguments], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(folder: Path) -> str:
    return (folder / "log").read_text()


def wait_for(folder: Path, text: str, process: subprocess.Popen[str], timeout_s: float = 150) -> None:
    deadline = time.monotonic() + timeout_s
    while text not in said(folder):
        assert process.poll() is None, said(folder)
        assert time.monotonic() < deadline, said(folder)
        time.sleep(0.05)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Processes forked from a run, recognized by its command line, or from its fork server (Python 3.14)."""
    own = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            commands[pid] = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
    children = [pid for pid, parent in parents.items() if parent == process.pid and pid in commands]
    servers = [pid for pid in children if b"multiprocessing.forkserver" in commands[pid]]
    return [pid for pid in children if commands[pid] == own] + [p for p in parents if parents[p] in servers]


def test_a_killed_worker_of_the_loader_ends_the_run(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 40)
    data = ("data=image_folder", f"data.folder={images}", "data.num_workers=1", "data.batch_size=4")
    run = ("data.image_size=16", "model.stem=cifar", "callbacks=none", "logger=csv")
    with running(tmp_path, *LONG, *data, *run) as process:
        wait_for(tmp_path, "epoch 1/", process)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:  # there is a new one for each epoch
            for worker in workers(process):
                os.kill(worker, signal.SIGKILL)
            time.sleep(0.1)
        assert process.wait(60) == 1, said(tmp_path)
    assert re.search(KILLED, said(tmp_path)), said(tmp_path)


@pytest.mark.distributed
def test_a_stopped_rank_is_named_and_the_run_ends_with_the_watchdogs_code(tmp_path: Path) -> None:
    limits = ("callbacks.watchdog.timeout_s=10", "callbacks.watchdog.slow_timeout_s=10")
    with running(tmp_path, "trainer=ddp", "callbacks=[checkpoint,watchdog]", *LONG, *limits) as process:
        wait_for(tmp_path, "epoch 1/", process)
        os.kill(rank_of(process.pid, 1), signal.SIGSTOP)
        assert process.wait(120) == 124, said(tmp_path)  # torchrun waits 30 s for the rank that it can't end
    text = said(tmp_path)
    assert text.count("; the run ends with exit code 124:") == 1
    assert "nothing moves on rank 1 for" in text
    assert "rank 1: doesn't answer" in text
    assert "rank 0: waits in" in text


def test_without_wandb_the_training_goes_on(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    wandb = ("logger=wandb", "logger.wandb.offline=false", "logger.wandb.init_timeout_s=3")
    environ = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": API_KEY}
    with running(tmp_path, "run_id=r", "callbacks=none", "test=false", *SHORT, *wandb, **environ) as process:
        assert process.wait(200) == 0, said(tmp_path)
    text = said(tmp_path)
    assert text.count("W&B can't be reached") == 1
    assert "this run is logged offline" in text
    assert "training:      1 epoch(s)" in text
    assert len(list((tmp_path / "outputs" / "r" / "wandb").glob("offline-run-*"))) == 1
    assert API_KEY not in text
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and API_KEY.encode() in p.read_bytes()]


def with_wandb(folder: Path, server: Server) -> str:
    """What a run says that ends with code 0; W&B gets 3 seconds at both ends."""
    wandb = ("logger=wandb", "logger.wandb.offline=false", "logger.wandb.init_timeout_s=3")
    short = ("run_id=r", "model=mlp", "trainer.max_epochs=1", "trainer.limit_train_batches=4", "callbacks=none")
    options = (*short, *wandb, "logger.wandb.finish_timeout_s=3", "trainer.accelerator=cpu", "test=false")
    with running(folder, *options, WANDB_BASE_URL=server.url, WANDB_API_KEY=API_KEY) as process:
        assert process.wait(270) == 0, said(folder)
    text = said(folder)
    assert "training:      1 epoch(s)" in text
    assert (folder / "outputs" / "r" / "metrics.csv").is_file()
    return text


@pytest.mark.parametrize("outage", ["hangs", "errors"])
def test_a_wandb_that_never_answers_costs_the_time_limit_alone(outage: Outage, tmp_path: Path) -> None:
    with serving(outage, from_the_start=True) as server:
        text = with_wandb(tmp_path, server)
    assert text.count("W&B can't be reached") == 1
    assert re.findall(r"wandb sync (\S+)/wandb/offline-run-\*", text)
    assert server.run is None


@pytest.mark.parametrize("outage", ["hangs", "errors", "closes"])
def test_a_wandb_that_stops_answering_ends_no_run_and_nothing_is_lost(outage: Outage, tmp_path: Path) -> None:
    with serving(outage, from_the_start=False) as server:
        text = with_wandb(tmp_path, server)
    assert server.run == "r"
    (folder,) = re.findall(r"W&B hasn't taken all of this run; .* by wandb sync (\S+)", text)
    (record,) = (tmp_path / folder).glob("run-r.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--summary", "--json", str(record)]
    summary = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert "train/loss" in json.dumps(summary["summary"])


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Two connected network namespaces, which simulate two nodes."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and iproute2: apt-get install iproute2")
    names = [f"syncbn-{os.getpid()}-{number}" for number in range(2)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this system makes no network namespaces: {error.stderr.strip()}")
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.99.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.mark.distributed
def test_nodes_that_are_cut_off_end_within_the_time_out(nodes: list[str], tmp_path: Path) -> None:
    """The ranks are started as torchrun starts them on two nodes."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    common |= {"MASTER_ADDR": "10.99.0.1", "MASTER_PORT": "29400", "TORCHELASTIC_RUN_ID": "cut"}
    common |= {"GLOO_SOCKET_IFNAME": "cable"}
    arguments = ("run_id=r", "trainer=ddp", "trainer.strategy.timeout_s=15", "callbacks=none", *LONG)
    folders = [tmp_path / name for name in nodes]
    entered = [("ip", "netns", "exec", name) for name in nodes]
    ranks = [{"RANK": rank, "GROUP_RANK": rank, **common} for rank in ("0", "1")]
    with (
        running(folders[0], *arguments, prefix=entered[0], **ranks[0]) as first,
        running(folders[1], *arguments, prefix=entered[1], **ranks[1]) as second,
    ):
        wait_for(folders[0], "epoch 1/", first)
        ip("-n", nodes[1], "link", "set", "cable", "down")
        for process, folder in ((first, folders[0]), (second, folders[1])):
            assert process.wait(100) == 1, said(folder)
            assert re.search(r"[Tt]imed out|timeout", said(folder)), said(folder)
