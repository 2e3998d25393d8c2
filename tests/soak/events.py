"""What can happen to a run, and what has to come of it."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.starts import STALE_S, Start, end_all, processes_in, start
from tests.soak.stories import Event, Story

OF_OTHERS = ("kill a rank", "kill a worker")  # a peer or a library reports the loss, with a traceback


class Wrong(Exception):
    """Something that the documentation doesn't promise or list."""


@dataclass
class Place:
    """Where a story happens.

    Attributes:
        folder: working directory, a small file system of its own.
        log: output of all starts.
        whole_s: seconds that the uninterrupted run took.
        whole_rows: its rows of metrics.csv.
        draw: random numbers of the events.
        run_id: the run's, which a renamed folder changes.
        words: of the command line, which a change adds to.
        validated_more: whether a limit has brought another validation.
        changed: whether an option was changed; the run of before is then `reference`.
        reasons: reasons of the documentation for not comparing.
        notes: what came of the events.
    """

    folder: Path
    log: Path
    whole_s: float
    whole_rows: int
    draw: random.Random
    words: tuple[str, ...]
    run_id: str = "run"
    validated_more: bool = False
    changed: bool = False
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.folder / "outputs" / self.run_id

    def begin(self, *more: str, cold: bool = False) -> Start:
        """Start the run, or go on with it."""
        return start((*self.words, f"run_id={self.run_id}", *more), self.folder, self.log, cold=cold)

    def rows(self) -> int:
        """Rows of metrics.csv."""
        with suppress(OSError):
            return (self.run / "metrics.csv").read_bytes().count(b"\n")
        return 0


def wait_for(moment: Event, one: Start, place: Place) -> None:
    """Wait for a moment of a start, or its end."""
    began, left = time.monotonic(), time.monotonic() + 120
    target = moment.at * place.whole_rows
    while one.poll() is None and time.monotonic() < left:
        if moment.moment == "seconds" and time.monotonic() - began > moment.at * place.whole_s:
            break
        if moment.moment == "progress" and place.rows() > target:
            break
        if moment.moment == "saving" and place.rows() > target and any((place.run / "checkpoints").glob(".*.tmp")):
            break
        time.sleep(0.001)
    time.sleep(place.draw.choice((0, 0, 0.01, 0.05, 0.3)))


def happen(event: Event, place: Place, told: Story) -> None:
    """Start a run, let an event happen to it, and check how it ends.

    Raises:
        Wrong: it ends in another way than documented.
    """
    more = _limit(event, place, told)
    one = place.begin(*more, cold=event.cold)
    if not more:
        wait_for(event, one, place)
    before = one.poll()
    codes = _HAPPENS[event.kind](event, one, place, told)
    code = one.wait()
    _wait_for_all(place)
    place.notes.append(f"{event.kind}: " + ("over" if before is not None else f"code {code}"))
    early = code < 0 and not one.said().strip()  # before Python has come to our first line
    if code not in (0, *codes) and not early and not (event.cold and "KeyboardInterrupt" in one.said()):
        raise Wrong(f"{event.kind}: exit code {code}, not {codes}: {one.said()[-1500:]}")
    check_words(one, event.kind)
    _AFTER.get(event.kind, _nothing)(place)


def check_words(one: Start, kind: str) -> None:
    """Check that a start has ended without a traceback.

    Raises:
        Wrong: there is one.
    """
    text = one.said()
    if "Traceback" in text and kind not in OF_OTHERS and "KeyboardInterrupt" not in text:
        raise Wrong(f"{kind}: a traceback: {text[text.index('Traceback') :][-2500:]}")


def _limit(event: Event, place: Place, told: Story) -> tuple[str, ...]:
    if event.kind == "max_epochs":
        return (f"trainer.max_epochs={1 + int(event.at * (told.epochs - 1))}",)
    if event.kind == "max_steps":
        return (f"trainer.max_steps={1 + int(event.at * told.epochs * told.steps)}",)
    if event.kind == "max_time":
        return (f"+trainer.max_time={{seconds: {0.1 + 0.3 * event.at * place.whole_s:.2f}}}",)
    return ()


def _signalled(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    signum = getattr(signal, event.kind)
    if one.poll() is None:
        whom = place.draw.choice(("leader", "group", "rank"))
        with suppress(ProcessLookupError):
            if whom == "rank":
                os.kill(place.draw.choice(one.ranks()), signum)
            else:
                one.signal(signum, group=whom == "group")
    return (128 + signum,)


def _killed(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    one.signal(signal.SIGKILL)
    return (-signal.SIGKILL,)


def _rank_killed(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    if one.poll() is None:
        with suppress(ProcessLookupError):
            os.kill(place.draw.choice(one.ranks()), signal.SIGKILL)
    return (128 + signal.SIGKILL, -signal.SIGKILL, 1)


def _worker_killed(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    """Until the run ends: one that has delivered its batches isn't missed."""
    until = time.monotonic() + 120
    while one.poll() is None and time.monotonic() < until:
        if workers := one.workers():
            with suppress(ProcessLookupError):
                os.kill(place.draw.choice(workers), signal.SIGKILL)
        time.sleep(0.02)
    return (1,)


def _suspended(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    if one.poll() is not None:
        return ()
    stopped = processes_in(place.folder)
    for pid in stopped:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    held = _generation(place)
    second = place.begin()
    until = time.monotonic() + STALE_S + 60
    while second.poll() is None and _generation(place) == held and time.monotonic() < until:
        time.sleep(0.05)
    if second.poll() is None:
        time.sleep(place.draw.choice((0, 0.5, 3)))
    for pid in stopped:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    code, first = second.wait(), one.wait()
    if code or "Traceback" in second.said():
        raise Wrong(f"suspend: the second start ended with {code}, the first with {first}: {second.said()[-2500:]}")
    # Stopped before it had the lock, it finds it taken.
    return (1, 2, 124) if "is being written by another start of this run" in one.said() else (1, 124)


def _generation(place: Place) -> int:
    with suppress(OSError, ValueError, KeyError):
        return int(json.loads((place.run / ".lock" / "holder.json").read_text())["generation"])
    return 0


def _second_start(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    _wait_until_it_holds(one, place)  # else the second may be the first
    if one.poll() is not None:
        return ()
    second = place.begin()
    while second.poll() is None and one.poll() is None:  # slow, so that it outlives the second
        one.signal(signal.SIGSTOP, group=True)
        time.sleep(0.4)
        one.signal(signal.SIGCONT, group=True)
        time.sleep(0.1)
    code = second.wait()
    over = code == 0 and "training:      none" in second.said()  # the first has ended, but for its process
    if one.poll() is None and not over and (code != 2 or "is being written by another start" not in second.said()):
        raise Wrong(f"second start: exit code {code}: {second.said()[-1500:]}")
    if code not in (0, 2):
        raise Wrong(f"second start: exit code {code}: {second.said()[-1500:]}")
    one.signal(signal.SIGTERM)
    return (128 + signal.SIGTERM,)


def _full(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    _fill(place, place.draw.choice((0, 0, 1, 2, 5, 10, 40)))
    code = one.wait()
    if code and "No space left on device" not in one.said():
        raise Wrong(f"full disk: exit code {code}: {one.said()[-1500:]}")
    return (1, 2)


def _fill(place: Place, left: int) -> None:
    filler = place.folder / "outputs" / "filler"
    filler.parent.mkdir(exist_ok=True)
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
        file.truncate(max(0, file.tell() - 4096 * left))


def _not_full(place: Place) -> None:
    (place.folder / "outputs" / "filler").unlink(missing_ok=True)


def _wait_until_it_holds(one: Start, place: Place) -> None:
    """Wait for a start that doesn't hold the run's lock yet, or its end.

    It would begin anew in the place of a folder that is gone.
    """
    while one.poll() is None:
        with suppress(OSError, ValueError):
            holder = json.loads((place.run / ".lock" / "holder.json").read_text())
            if not holder["ended"] and Path(f"/proc/{holder['pid']}").exists():
                return
        time.sleep(0.01)


def _removed(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    shutil.rmtree(place.run, ignore_errors=True)
    one.wait()
    if "Traceback" not in one.said() and place.run.exists() and not (place.run / ".hydra").exists():
        left = [str(path.relative_to(place.run)) for path in place.run.rglob("*") if path.is_file()]
        if left and (place.run / "checkpoints").exists():
            raise Wrong(f"remove: the run has made its folder anew: {left}")
    if place.changed:  # from the start on, now
        shutil.rmtree(place.run.with_name("whole"))
        start((*place.words, "run_id=whole"), place.folder, place.log, cold=False).wait()
    return (1,)


def _renamed(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    """While it runs: the run ends, and goes on under the new name."""
    _wait_until_it_holds(one, place)
    if place.run.is_dir():
        before, place.run_id = place.run, f"run{len(place.notes)}"
        before.rename(place.run)
        one.wait()
        made = [str(path) for path in before.rglob("*") if path.is_file() and path.name != "output.log"]  # W&B's
        if made:
            raise Wrong(f"rename: the run has made {made}")
    return (1,)


def _moved(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    """After a stop: copied, the first one removed."""
    one.signal(signal.SIGTERM)
    one.wait()
    _wait_for_all(place)
    if place.run.is_dir():
        before, place.run_id = place.run, f"run{len(place.notes)}"
        shutil.copytree(before, place.run)
        shutil.rmtree(before)
    return (128 + signal.SIGTERM,)


def _damaged(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    one.signal(signal.SIGTERM)
    one.wait()
    _wait_for_all(place)
    last = place.run / "checkpoints" / "last.ckpt"
    if last.is_file():
        data = bytearray(last.read_bytes())
        if event.kind == "truncate":
            del data[place.draw.randrange(len(data)) :]
        else:
            data[place.draw.randrange(len(data))] ^= 1 << place.draw.randrange(8)
        last.write_bytes(data)
        if not last.with_name("last.previous.ckpt").exists():
            again = place.begin()
            if (code := again.wait()) == 2 and "damaged" in again.said():
                last.unlink()  # nothing to go on from
                for file in ("best.ckpt", "metrics.csv", "norm_statistics.csv"):
                    (place.run / "checkpoints" / file).unlink(missing_ok=True)
            elif code:
                raise Wrong(f"{event.kind}: the only checkpoint: exit code {code}: {again.said()[-1500:]}")
    return (128 + signal.SIGTERM,)


def _changed(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    """Another number of epochs, or rate, from here on: compared with the copy that nothing more happens to."""
    one.signal(signal.SIGTERM)
    code = one.wait()
    _wait_for_all(place)
    if (place.run / "checkpoints" / "last.ckpt").exists() and code:
        lr = "task.lr" if "dcgan" in " ".join(told.words) else "optimizer.lr"
        changes = [f"{lr}=0.003", "trainer.gradient_clip_val=0.5", "trainer.log_every_n_steps=3"]
        if not any(word.startswith("trainer.max_steps=") for word in place.words):
            changes.append(f"trainer.max_epochs={told.epochs + 1}")
        if "dcgan" in " ".join(told.words):
            changes = changes[3:] or ["trainer.log_every_n_steps=3"]
        place.words = (*place.words, place.draw.choice(changes))
        place.changed = True
        shutil.rmtree(place.run.with_name("whole"), ignore_errors=True)  # of an earlier change
        shutil.copytree(place.run, place.run.with_name("whole"))
        log = place.log.with_name("changed.log")  # what `one` has said stays by itself
        whole = start((*place.words, "run_id=whole"), place.folder, log, cold=False)
        if (code := whole.wait()) or "Traceback" in whole.said():
            raise Wrong(f"change: {place.words[-1]}: exit code {code}: {whole.said()[-1500:]}")
        if "changed:" not in whole.said():
            raise Wrong(f"change: {place.words[-1]} isn't said: {whole.said()[-1500:]}")
    return (128 + signal.SIGTERM,)


def _other_ranks(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    one.signal(signal.SIGTERM)
    if one.wait():
        place.words = (*place.words, "trainer.devices=1")
        place.reasons.append("another number of ranks")
    return (128 + signal.SIGTERM,)


def _again(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    """A run that is past its end trains nothing, and stays as it is."""
    one.wait()
    last = place.run / "checkpoints" / "last.ckpt"
    data = last.read_bytes()
    again = place.begin()
    if (code := again.wait()) or "training:      none" not in again.said():
        raise Wrong(f"again: exit code {code}: {again.said()[-1500:]}")
    if last.read_bytes() != data:
        raise Wrong("again: last.ckpt isn't what it was")
    check_words(again, "again")
    return ()


def _runs_on(event: Event, one: Start, place: Place, told: Story) -> tuple[int, ...]:
    """Until its limit. At an epoch's end the limit is no cut: the validation there belongs to the run."""
    if one.wait() == 0 and event.kind != "max_epochs":
        place.validated_more = True
    return ()


def _nothing(place: Place) -> None:
    pass


def _wait_for_all(place: Place) -> None:
    """Wait for ranks whose launcher was killed: they save, and end.

    Raises:
        Wrong: they don't.
    """
    until = time.monotonic() + 90
    while left := processes_in(place.folder):
        if time.monotonic() > until:
            end_all(place.folder)
            raise Wrong(f"{len(left)} process(es) of the run are left after its end")
        time.sleep(0.02)


_HAPPENS: dict[str, Callable[[Event, Start, Place, Story], tuple[int, ...]]] = {
    "SIGTERM": _signalled,
    "SIGINT": _signalled,
    "SIGHUP": _signalled,
    "SIGUSR1": _signalled,
    "kill": _killed,
    "kill a rank": _rank_killed,
    "kill a worker": _worker_killed,
    "suspend": _suspended,
    "second start": _second_start,
    "max_epochs": _runs_on,
    "max_steps": _runs_on,
    "max_time": _runs_on,
    "full disk": _full,
    "remove": _removed,
    "rename": _renamed,
    "move": _moved,
    "flip a bit": _damaged,
    "truncate": _damaged,
    "change": _changed,
    "other ranks": _other_ranks,
    "again": _again,
}
_AFTER: dict[str, Callable[[Place], None]] = {"full disk": _not_full}
