"""A last checkpoint that a disk has damaged or lost: the run goes on from the one before, and puts it in its place."""

from pathlib import Path

import pytest

from tests.run.here import train

SHORT = [
    *("trainer.limit_train_batches=3", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
    *("data.batch_size=16", "trainer.log_every_n_steps=1", "resume=auto", "scheduler=constant"),
]


@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed"])
@pytest.mark.parametrize("epochs", [2, 3])  # at the end of the run, and in its middle
def test_the_one_before_takes_its_place(damage: str, epochs: int, tmp_path: Path) -> None:
    whole = train(tmp_path, "whole", "trainer.max_epochs=3", *SHORT)
    run = train(tmp_path, "run", "trainer.max_epochs=2", *SHORT)
    last = run.folder / "checkpoints" / "last.ckpt"
    if damage == "removed":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[: 500 * (damage == "truncated")])
    run = train(tmp_path, "run", f"trainer.max_epochs={epochs}", *SHORT)
    assert run.checkpoint()["global_step"] == 3 * epochs
    if epochs == 3:
        for name, weight in whole.checkpoint()["state_dict"].items():
            assert weight.equal(run.checkpoint()["state_dict"][name]), name


def test_what_a_killed_start_was_writing_is_removed(tmp_path: Path) -> None:
    run = train(tmp_path, "run", "trainer.max_epochs=1", *SHORT)
    left = [run.folder / "checkpoints" / ".best.ckpt.x7.tmp", run.folder / "checkpoints" / ".best.ckpt.link"]
    left += [run.folder / ".metrics.csv.x7.tmp"]
    for path in left:
        path.write_bytes(b"half")
    train(tmp_path, "run", "trainer.max_epochs=2", *SHORT)
    assert not any(path.exists() for path in left)
    assert (run.folder / ".hydra").is_dir()
