"""Run folders on file systems that are full at any write, read-only after the start, or slow."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.summary.writer.event_file_writer import _AsyncWriter

from syncbn.launch.faults import Fault
from syncbn.run.errors import UserError, disk_faults
from syncbn.training import ClassificationTask
from tests.run.here import RunHere, train

RUN = (
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=4",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=1",
    "model.hidden_size=8",
    "data.batch_size=8",
    "callbacks=default",
    "resume=auto",
)
PAGE = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB. As root only, and CI is."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunHere:
    """The run on a disk that has room."""
    return train(tmp_path_factory.mktemp("whole"), "run", *RUN)


def fill(disk: Path, pages: int) -> Path:
    """Fill a file system up to some pages."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    os.truncate(filler, max(0, filler.stat().st_size - PAGE * pages))
    return filler


def assert_equal(run: RunHere, whole: RunHere) -> None:
    torch.testing.assert_close(run.checkpoint()["state_dict"], whole.checkpoint()["state_dict"], rtol=0, atol=0)
    for key in ("optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(run.checkpoint()[key], whole.checkpoint()[key], rtol=0, atol=0)
    for name in ("train/loss", "val/loss", "test/loss", "lr-SGD/pg1"):
        assert run.column(name) == whole.column(name)


# From the lock and the config, over the tables, the checkpoints and their exchange, to each of the plots.
@pytest.mark.parametrize("pages", [0, 1, 2, 3, 5, 8, 12, 20, 32, 48, 90])
def test_a_disk_that_is_full_ends_the_run_in_one_line_and_it_goes_on(disk: Path, whole: RunHere, pages: int) -> None:
    filler = fill(disk, pages)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "plots/ isn't complete: .*No space left on device")  # not worth a run
        try:
            train(disk, "run", *RUN)
        except (Fault, UserError) as error:
            assert "No space left on device" in str(error)  # noqa: PT017
        else:
            assert pages > 30  # all but the plots had room
    filler.unlink()
    run = train(disk, "run", *RUN)
    assert_equal(run, whole)
    assert not list(run.folder.rglob(".*.tmp"))


def at(owner: Any, name: str, number: int, action: Any, patch: pytest.MonkeyPatch) -> None:
    """Do something before the n-th call of a function."""
    function, calls = getattr(owner, name), []

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            action()
        return function(*arguments, **keywords)

    patch.setattr(owner, name, wrapped)


def mount_again(disk: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)


@pytest.mark.parametrize(
    ("step", "number"), [("training_step", 1), ("training_step", 6), ("validation_step", 1), ("test_step", 1)]
)
def test_a_disk_that_becomes_read_only_ends_the_run_in_one_line_and_it_goes_on(
    disk: Path, whole: RunHere, step: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCBN_LOCK_STALE_S", "1")  # the holder that couldn't give the folder back is this process
    with monkeypatch.context() as patch:
        at(ClassificationTask, step, number, lambda: mount_again(disk, "ro"), patch)
        with pytest.raises(Fault, match="Read-only file system"):
            train(disk, "run", *RUN)
    with pytest.raises((Fault, UserError), match="Read-only file system"):
        train(disk, "run", *RUN)
    mount_again(disk, "rw")
    assert_equal(train(disk, "run", *RUN), whole)


SLOW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
int fsync(int handle) {
    usleep(700000);
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(handle);
}
"""


@pytest.mark.slow
def test_a_slow_disk_is_waited_for_and_a_second_start_is_refused_on_it(tmp_path: Path, whole: RunHere) -> None:
    """Every flush takes 0.7 s, as on a network file system under load."""
    (tmp_path / "slow.c").write_text(SLOW)
    library = tmp_path / "slow.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "slow.c", "-ldl"], check=True)
    environ = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "SYNCBN_LOCK_STALE_S": "4"}
    short = ("model=mlp", "data=digits", "trainer.accelerator=cpu", f"output_root={tmp_path}", "run_id=run")
    command = [sys.executable, "-m", "syncbn", "train", *short, *RUN]
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as first:
        until = time.monotonic() + 120
        while not (tmp_path / "run" / ".hydra").is_dir() and time.monotonic() < until:
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        second = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if first.poll() is None:
            assert second.returncode == 2, second.stderr
            assert "is being written by another start" in second.stderr
            first.send_signal(signal.SIGTERM)
        _, err = first.communicate(timeout=200)
        assert first.returncode in (0, 143), err
    assert_equal(train(tmp_path, "run", *RUN), whole)


class FullDisk:
    """A file of TensorBoard's on a disk without room."""

    def write(self, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        """Do nothing."""


def test_tensorboards_thread_leaves_its_error_to_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", shown.append)

    @disk_faults()
    def write() -> None:
        writer = _AsyncWriter(FullDisk())
        while True:
            writer.write(b"row")
            time.sleep(0.01)

    with pytest.raises(Fault, match="No space left on device"):
        write()
    assert not shown
    with disk_faults():  # another thread's error is shown as ever
        thread = threading.Thread(target=FullDisk().write, args=(b"row",))
        thread.start()
        thread.join()
    assert len(shown) == 1
