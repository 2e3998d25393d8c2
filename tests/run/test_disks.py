"""Run folders on file systems that are full at any write."""

import os
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from syncbn.launch.faults import Fault
from syncbn.run.errors import UserError
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
