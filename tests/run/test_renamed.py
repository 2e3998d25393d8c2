"""A run whose folder is renamed while it runs: it ends in one line, and goes on under the new name."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import wandb

from syncbn.launch.faults import Fault
from syncbn.launch.world import World
from syncbn.run import fit
from syncbn.run import folder as run_folder
from syncbn.run.lock import acquire
from syncbn.training.callbacks import figures
from syncbn.training.callbacks.wandb_media import WandbMedia
from tests.run.here import RunHere, train
from tests.run.test_disks import RUN, assert_equal, at, whole

__all__ = ["whole"]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (run_folder, "replace_text"),
        (figures, "read_metrics"),
        (figures, "_save"),
        (figures, "draw_norm_statistics"),
        (figures, "draw_confusion_matrix"),
    ],
)
def test_nothing_is_made_under_the_old_name(
    tmp_path: Path, whole: RunHere, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCBN_LOCK_STALE_S", "1")  # the holder that couldn't give the folder back is this process
    old, new = tmp_path / "run", tmp_path / "new"
    with monkeypatch.context() as patch:
        at(owner, name, 1, lambda: old.rename(new), patch)
        with pytest.raises(Fault, match="was removed or renamed"):
            train(tmp_path, "run", *RUN)
    assert not old.exists()
    assert_equal(train(tmp_path, "new", *RUN), whole)


def test_nor_by_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    old, new = tmp_path / "run", tmp_path / "new"
    at(WandbMedia, "_table", 1, lambda: old.rename(new), monkeypatch)
    try:
        with pytest.raises(Fault, match="was removed or renamed"):
            train(tmp_path, "run", *RUN, "logger=wandb")
    finally:
        wandb.finish(exit_code=1)  # as the process does when it ends
    assert not old.exists()
    assert list(new.glob("wandb/offline-run-*"))


@pytest.mark.parametrize("is_there", [True, False])
def test_a_rank_that_misses_a_file_says_so_where_the_folder_is_gone(
    tmp_path: Path, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks but the first one have no lock; they read checkpoints."""
    folder = tmp_path / "run"

    def test(*_: Any) -> float:
        if not is_there:
            shutil.rmtree(folder)
        raise FileNotFoundError("best.ckpt")

    monkeypatch.setattr(fit, "_train", test)
    lock = acquire(folder)
    try:
        error, said = (FileNotFoundError, "best.ckpt") if is_there else (Fault, "was removed or renamed")
        with pytest.raises(error, match=said):
            train(tmp_path, "run", *RUN, world=World("python", 1, 1, 2, 2, 2))
    finally:
        lock.release()
