"""One start of a run writes to its folder at a time."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syncbn.run import lock as locks
from syncbn.run.errors import UserError
from syncbn.run.lock import Lock, Overtaken, acquire, read_holder
from tests.run.here import train

HOLD = (
    "import sys, time; from pathlib import Path; from syncbn.run.lock import acquire\n"
    "lock = acquire(Path(sys.argv[1])); print('held', flush=True); time.sleep(300)"
)


@pytest.fixture(autouse=True)
def soon_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(locks.STALE, "2")


@contextmanager
def held_by_another(folder: Path) -> Iterator[int]:
    """The process that holds a folder meanwhile, by its number."""
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        try:
            yield child.pid
        finally:
            child.kill()


def began(folder: Path) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    return folder


def test_a_second_start_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    with held_by_another(began(tmp_path)) as pid:
        with pytest.raises(UserError, match=rf"is being written by another start .*\(process {pid} on .*, since "):
            acquire(tmp_path)
        assert read_holder(tmp_path).pid == pid


def test_one_that_was_killed_is_followed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held_by_another(began(tmp_path)) as pid:
        os.kill(pid, signal.SIGKILL)  # it isn't waited for: a zombie is dead, too
        monkeypatch.setenv(locks.STALE, "1000")
        lock = acquire(tmp_path)
        assert lock.holder.generation == 2
        lock.release()


def test_one_that_stands_still_is_overtaken_and_ends_when_it_goes_on(tmp_path: Path) -> None:
    first = acquire(began(tmp_path))
    assert first._end is not None
    first._end.set()  # no more signs of life
    second = acquire(tmp_path)
    second.check()
    with pytest.raises(Overtaken, match=r"has taken its folder over .*generation 1 of 2"):
        first.check()
    first._end.clear()
    first.release()  # not its own to give back
    assert read_holder(tmp_path) == second.holder
    second.release()


def test_a_process_that_was_suspended(tmp_path: Path) -> None:
    with held_by_another(began(tmp_path)) as pid:
        os.kill(pid, signal.SIGSTOP)
        lock = acquire(tmp_path)
        assert lock.holder.generation == 2
        lock.release()


def test_the_generation_rises_and_little_stays(tmp_path: Path) -> None:
    began(tmp_path)
    for generation in (1, 2, 3):
        lock = acquire(tmp_path)
        assert lock.holder.generation == generation
        lock.release()
    assert sorted(path.name for path in (tmp_path / ".lock").iterdir()) == ["beat-3", "holder.json"]


def test_a_start_that_was_refused_leaves_no_trace(tmp_path: Path) -> None:
    lock = acquire(tmp_path / "run")
    lock.release()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_goes_away_ends_the_run(tmp_path: Path) -> None:
    lock = acquire(began(tmp_path / "run"))
    (tmp_path / "run").rename(tmp_path / "other")
    with pytest.raises(Overtaken, match="was removed or renamed"):
        lock.check()
    lock.release()
    assert not (tmp_path / "run").exists()


def test_the_copy_of_a_living_run_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(locks.STALE, "1000")
    lock = acquire(began(tmp_path / "run"))
    subprocess.run(["cp", "-r", tmp_path / "run", tmp_path / "copy"], check=True)
    copy = acquire(tmp_path / "copy")
    assert copy.holder.generation == 2
    copy.release()
    lock.check()
    lock.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"job": null}', '{"pid": 3}', "\x00"])
def test_a_damaged_file_doesnt_keep_a_run_from_starting(text: str, tmp_path: Path) -> None:
    acquire(began(tmp_path)).release()
    (tmp_path / ".lock" / "holder.json").write_text(text)
    lock = acquire(tmp_path)
    assert lock.holder.generation == 2
    lock.release()


def test_the_claim_of_a_start_that_died_over_it(tmp_path: Path) -> None:
    acquire(began(tmp_path)).release()
    (tmp_path / ".lock" / "claim-2").touch()
    lock = acquire(tmp_path)
    assert lock.holder.generation == 3
    lock.release()


def test_a_requeued_job_doesnt_block_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(locks.STALE, "1000")
    first = acquire(began(tmp_path), {"SLURM_JOB_ID": "7"})
    second = acquire(tmp_path, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})
    assert second.holder.generation == 2
    assert str(second.holder).endswith(second.holder.since)
    with pytest.raises(Overtaken, match=r"SLURM job 7"):
        first.check()
    second.release()


def test_another_machine_of_the_same_name_may_live(tmp_path: Path) -> None:
    """A number of a process says nothing there; its signs of life do."""
    lock = acquire(began(tmp_path))
    elsewhere = replace(lock.holder, machine="another", pid=2**22 + 1, started="0")
    locks._write(tmp_path / ".lock", elsewhere)
    with pytest.raises(UserError, match="another start"):
        acquire(tmp_path)
    lock.release()


def _starts(folder: str, queue: Any) -> None:
    os.environ[locks.STALE] = "5"  # more than a busy machine takes from a process
    try:
        lock = acquire(Path(folder))
    except UserError:
        queue.put(None)
    else:
        queue.put(lock.holder.generation)
        time.sleep(8)
        lock.check()


def test_of_many_starts_at_once_one_goes_on(tmp_path: Path) -> None:
    began(tmp_path)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    starts = [context.Process(target=_starts, args=(str(tmp_path), queue)) for _ in range(6)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    results = [queue.get() for _ in starts]
    assert results.count(1) == 1
    assert sorted(result for result in results if result) == [1]
    assert [start.exitcode for start in starts] == [0] * 6


def test_a_rank_waits_where_rank_0_does(tmp_path: Path) -> None:
    environ = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    began_at = time.monotonic()
    locks.wait_for_rank_0(tmp_path, environ)  # nobody was there
    lock = acquire(began(tmp_path), environ)
    locks.wait_for_rank_0(tmp_path, environ)  # it is its own rank 0
    assert time.monotonic() - began_at < 2
    locks.wait_for_rank_0(tmp_path, {**environ, "MASTER_PORT": "2"})
    assert time.monotonic() - began_at > 2
    lock.release()


def test_a_run_holds_its_folder_and_gives_it_back(tmp_path: Path) -> None:
    run = train(tmp_path, "run")
    holder = read_holder(run.folder)
    assert (holder.ended, holder.generation, holder.pid) == (True, 1, os.getpid())


def test_a_run_that_was_overtaken_ends_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from syncbn.training import LastCheckpoint

    before = LastCheckpoint.on_train_epoch_end

    def overtaken(self: Any, *arguments: Any) -> None:
        holder = read_holder(tmp_path / "run")
        locks._write(tmp_path / "run" / ".lock", replace(holder, token="another", generation=2))
        before(self, *arguments)

    monkeypatch.setattr(LastCheckpoint, "on_train_epoch_end", overtaken)
    with pytest.raises(Overtaken, match="generation 1 of 2"):
        train(tmp_path, "run")
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert read_holder(tmp_path / "run").token == "another"


def test_a_lock_goes_to_a_rank_that_is_spawned(tmp_path: Path) -> None:
    import pickle

    lock = acquire(began(tmp_path))
    there: Lock = pickle.loads(pickle.dumps(lock))
    there.check()
    there.release()  # which its owner does
    lock.check()
    lock.release()
