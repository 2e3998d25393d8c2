"""resume=auto, a path, or nothing: the checkpoint that a run resumes from."""

from pathlib import Path

import pytest
import torch

from syncbn.run.resume import LAST, Checkpoint, resume_from

LOOP = {  # of a checkpoint after the fourth batch
    "epoch_loop.state_dict": {"_batches_that_stepped": 3},
    "epoch_progress": {"total": {"started": 1, "processed": 0}},
}


def write_checkpoint(path: Path, step: int = 5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {}, "optimizer_states": [], "loops": {"fit_loop": LOOP}, "global_step": step}, path)
    return path


def test_auto_is_the_last_checkpoint_of_this_folder_or_a_start_from_nothing(tmp_path: Path) -> None:
    assert resume_from("auto", tmp_path) is None
    last = write_checkpoint(tmp_path / LAST)
    assert resume_from("auto", tmp_path) == Checkpoint(last, 5, 4, epochs=1)


def test_a_path_is_taken_from_anywhere(tmp_path: Path) -> None:
    elsewhere = write_checkpoint(tmp_path / "other" / "epoch3.ckpt", step=9)
    assert resume_from(str(elsewhere), tmp_path / "run") == Checkpoint(elsewhere, 9, 4, epochs=1)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    assert resume_from(None, tmp_path) is None
    write_checkpoint(tmp_path / LAST)
    with pytest.raises(ValueError, match=r"holds a run already: add resume=auto"):
        resume_from(None, tmp_path)


def test_a_missing_damaged_or_foreign_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"resume: no checkpoint .*nowhere.ckpt"):
        resume_from(str(tmp_path / "nowhere.ckpt"), tmp_path)
    whole = write_checkpoint(tmp_path / "whole.ckpt")
    half = tmp_path / "half.ckpt"
    half.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"half.ckpt.*truncated.*whole.ckpt"):
        resume_from(str(half), tmp_path)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"not a checkpoint of a training run \(it has weight\)"):
        resume_from(str(tmp_path / "weights.ckpt"), tmp_path)


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before_and_says_so(tmp_path: Path) -> None:
    last = write_checkpoint(tmp_path / LAST)
    before = write_checkpoint(last.with_name("last.previous.ckpt"), step=4)
    whole = last.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole.replace(b"global_step", b"global_stop")):
        last.write_bytes(damaged)
        found = resume_from("auto", tmp_path)
        assert found is not None
        assert (found.path, found.step) == (before, 4)
        assert "last.ckpt" in str(found.instead_of)
        with pytest.raises(ValueError, match=r"last\.ckpt"):  # who names it wants it
            resume_from(str(last), tmp_path)
    before.unlink()
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        resume_from("auto", tmp_path)
