"""Checkpoints are complete or absent, and reading one executes nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from pickle import PicklingError

import pytest
import torch

from syncbn.training import AtomicCheckpointIO
from syncbn.training.checkpoint import load_checkpoint

STATE = {"state_dict": {"w": torch.arange(6.0).view(2, 3)}, "epoch": 3, "names": ["a", "b"]}


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    torch.testing.assert_close(loaded["state_dict"]["w"], STATE["state_dict"]["w"])
    assert (loaded["epoch"], loaded["names"]) == (3, ["a", "b"])
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    with pytest.raises((AttributeError, PicklingError), match="local object"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": torch.zeros(10_000), "function": lambda: 0}, path)
    assert load_checkpoint(path)["epoch"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_leaves_the_old_checkpoint_and_is_named(small_disk: Path) -> None:
    path = small_disk / "last.ckpt"
    AtomicCheckpointIO(previous_of=["last.ckpt"]).save_checkpoint(STATE, path)
    with pytest.raises(OSError, match=r"No space left on device: can't write .*last.ckpt'; the one before it is whole"):
        AtomicCheckpointIO(previous_of=["last.ckpt"]).save_checkpoint({"w": torch.zeros(1_000_000)}, path)
    assert load_checkpoint(path)["epoch"] == 3
    assert [p.name for p in small_disk.iterdir()] == ["last.ckpt"]


KILLED = """
import sys, torch
from syncbn.training import AtomicCheckpointIO
io = AtomicCheckpointIO()
io.save_checkpoint({"value": torch.zeros(2_000_000)}, sys.argv[1])
print("ready", flush=True)
for i in range(1, 10_000):
    io.save_checkpoint({"value": torch.full((2_000_000,), float(i))}, sys.argv[1])
"""


def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not any(p.suffix == ".tmp" for p in tmp_path.iterdir()):
            pass  # until a save is under way
        process.kill()

    value = load_checkpoint(path)["value"]

    assert value.shape == (2_000_000,)
    assert (value == value[0]).all()


@pytest.mark.parametrize("kept", [0, 1, 100, 1500])
def test_a_truncated_checkpoint_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "best.ckpt")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"last\.ckpt") as caught:
        load_checkpoint(path)
    assert "best.ckpt" in str(caught.value)


def test_a_flipped_bit_is_found_wherever_it_matters(tmp_path: Path) -> None:
    """Each bit of the file matters or is padding: a file that loads equals what was saved."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    good = path.read_bytes()
    refused = 0
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        with suppress(ValueError):
            refused += 1
            loaded = load_checkpoint(path)
            refused -= 1
            assert torch.equal(loaded["state_dict"]["w"], STATE["state_dict"]["w"])
            assert (loaded["epoch"], loaded["names"]) == (3, ["a", "b"])
    assert refused > 50


def test_the_last_version_but_one_is_kept_where_asked(tmp_path: Path) -> None:
    io = AtomicCheckpointIO(previous_of=["last.ckpt"])
    for epoch in range(3):
        io.save_checkpoint({"epoch": epoch}, tmp_path / "last.ckpt")
        io.save_checkpoint({"epoch": epoch}, tmp_path / "best.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt", "last.previous.ckpt"}
    assert load_checkpoint(tmp_path / "last.ckpt")["epoch"] == 2
    assert load_checkpoint(tmp_path / "last.previous.ckpt")["epoch"] == 1


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.ckpt"
    path.write_text("not a checkpoint\n" * 100)
    with pytest.raises(ValueError, match=r"notes\.ckpt"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list, not the dict"):
        load_checkpoint(path)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_a_file_with_code_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, "evil.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of tensors and plain types"):
        AtomicCheckpointIO().load_checkpoint("evil.ckpt", weights_only=False)
    assert not Path("executed").exists()


@pytest.mark.parametrize("reader", ["resume", "model.weights", "run folder"])
def test_nor_is_it_wherever_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    from syncbn import models
    from syncbn.run import trained
    from syncbn.run.resume import resume_from

    readers = {
        "resume": lambda path: resume_from(str(path), Path("run")),
        "model.weights": lambda path: models.load_weights(torch.nn.Linear(1, 1), path),
        "run folder": lambda path: trained.load_weights(torch.nn.Linear(1, 1), path),
    }
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt"):
        readers[reader](Path("evil.pt"))
    assert not Path("executed").exists()


def test_a_missing_checkpoint_lists_what_there_is(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "best.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint '.*last.ckpt'; those beside it: best.ckpt"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_storage_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="leave it out"):
        AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "a.ckpt", storage_options={"key": 1})
