"""Lock of a run's folder: only one start of a run writes to it at a time.

`.lock/holder.json` records the holder: host, job, process, and a generation that increases with each start. The holder
changes `.lock/beat-<generation>` every few seconds. A second start watches that file by its own clock, since file times
and other machines' clocks are unreliable on network file systems. If the beat changes, the holder is alive and the
second start ends. Otherwise the holder is overtaken: the generation increases. If the old holder, having been
suspended, runs again, it notices this before its next write, and ends.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from syncbn.launch.faults import Fault
from syncbn.run.errors import UserError

PLACE = ".lock"
BEAT_S = 5.0
STALE_S = 60.0  # a network file system may hang for some of them
STALE = "SYNCBN_LOCK_STALE_S"
_HOLDER = "holder.json"
_LOOK_S = 0.2


class Overtaken(Fault):
    """Another start of the run has its folder now, or the folder is gone."""


@dataclass(frozen=True)
class Holder:
    """Holder of a folder's lock.

    Attributes:
        generation: number of starts so far.
        token: random token of the start.
        host: name of its machine.
        machine: id that distinguishes machines and containers of the same name.
        pid: process id.
        started: start time of the process, in the system's count.
        job: job of a scheduler or launcher, with its number of restarts.
        start: id shared by all ranks of a start; None for a single process.
        place: identity of the lock's folder on its disk, which differs for a copy.
        since: its start by the clock, for display.
        ended: whether it has released the folder.
    """

    generation: int
    token: str
    host: str
    machine: str
    pid: int
    started: str
    job: tuple[str, int] | None
    start: str | None
    place: int
    since: str
    ended: bool = False

    def __str__(self) -> str:
        job = f", {self.job[0]}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


class Lock:
    """A folder that this start of a run writes to, until `release`."""

    def __init__(self, folder: Path, holder: Holder) -> None:
        self.folder = folder
        self.holder = holder
        self._end: threading.Event | None = threading.Event()
        threading.Thread(target=self._beat, args=(self._end,), name="syncbn-lock", daemon=True).start()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_end": None}  # in a rank that this process has spawned: the beat is here

    def check(self) -> None:
        """Check that this start still holds the folder; call before each write to it.

        Raises:
            Overtaken: it doesn't.
        """
        now = holder_of_run(self.folder)
        if now and now.token != self.holder.token:
            raise Overtaken(
                f"another start of this run has taken its folder over ({now}), when this one had given no sign of life "
                f"for a while; this one ends (generation {self.holder.generation} of {now.generation})"
            )

    def release(self) -> None:
        """Release the folder, and remove all traces if no run has started in it."""
        if self._end is None or self._end.is_set():
            return
        self._end.set()
        place = self.folder / PLACE
        with suppress(OSError, Overtaken):
            self.check()
            if (self.folder / ".hydra").is_dir():
                try:
                    _write(place, replace(self.holder, ended=True))
                except OSError:  # a full disk: there is room to remove
                    for name in (_temporary(self.holder), _HOLDER):
                        (place / name).unlink(missing_ok=True)
            else:
                for file in place.iterdir():
                    file.unlink()
                place.rmdir()

    def _beat(self, end: threading.Event) -> None:
        beats = 0
        while not end.wait(min(BEAT_S, stale_after() / 4)):
            beats += 1
            with suppress(OSError):  # a full disk: the same bytes again need no room
                _write_beat(self.folder / PLACE, self.holder.generation, beats)


def acquire(folder: Path, environ: Mapping[str, str] = os.environ) -> Lock:
    """Acquire a run's folder for this process, after a wait if its holder shows no sign of life.

    Raises:
        UserError: its holder is alive.
    """
    place = folder / PLACE
    place.mkdir(parents=True, exist_ok=True)
    me = _myself(place, environ)
    seen: tuple[str | None, bytes, int] | None = None
    since, skipped, signs = 0.0, 0, 0
    while True:
        holder = read_holder(folder)
        generation = holder.generation if holder else _last_beat(place)
        watched = (holder.token if holder else None, _read_beat(place, generation), _claims(place))
        if watched != seen:
            signs += seen is not None and watched[0] == seen[0] and watched[1] != seen[1]
            if signs > 1 and holder and not holder.ended:  # after one, it may be saving, and end
                raise UserError(
                    f"{str(folder)!r} is being written by another start of this run ({holder}): stop that one, or "
                    "choose another run_id=<name>"
                )
            seen, since, skipped = watched, time.monotonic(), 0
        still = time.monotonic() - since > stale_after()
        if holder is None or holder.ended or still or _is_gone(holder, place) or _is_before(holder, environ):
            if still:
                skipped = watched[2]  # claims of starts that died in the attempt
            if (lock := _claim(folder, holder, replace(me, generation=generation + 1 + skipped))) is not None:
                return lock
        time.sleep(_LOOK_S)


def wait_for_rank_0(folder: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Wait on other ranks while rank 0 waits for the folder, so that all resume from the same checkpoint."""
    start, until = _start(environ), time.monotonic() + 1.5 * stale_after()
    while start is not None and time.monotonic() < until:
        with suppress(OSError):
            holder = read_holder(folder)
            if holder is None or holder.ended or holder.start == start:
                return
        time.sleep(_LOOK_S)


def holder_of_run(folder: Path) -> Holder | None:
    """Read the holder of a run's folder; None if the file system doesn't respond.

    Raises:
        Overtaken: there is none: the folder is gone.
    """
    with suppress(OSError):
        if (holder := read_holder(folder)) is not None:
            return holder
        raise Overtaken(f"the run's folder {str(folder)!r} was removed or renamed, and the run ends")
    return None


def read_holder(folder: Path) -> Holder | None:
    """Read the current or last holder of a folder; None if there is none, or it can't be read."""
    try:
        fields = json.loads((folder / PLACE / _HOLDER).read_text())
        job = fields.pop("job")
        return Holder(job=None if job is None else (job[0], job[1]), **fields)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, AttributeError):
        return None


def stale_after() -> float:
    """Seconds without a sign of life after which a holder is overtaken."""
    return float(os.environ.get(STALE, STALE_S))


def _claim(folder: Path, before: Holder | None, me: Holder) -> Lock | None:
    """Claim a free folder, unless another start is faster: only one can exclusively create the file."""
    place = folder / PLACE
    claim = place / f"claim-{me.generation}"
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return None
    if read_holder(folder) != before:
        claim.unlink(missing_ok=True)
        return None
    _write_beat(place, me.generation, 0)
    _write(place, me)
    for file in place.iterdir():
        if file.name.startswith(("claim-", "beat-")) and file.name != f"beat-{me.generation}":
            file.unlink(missing_ok=True)
    return Lock(folder, me)


def _write(place: Path, holder: Holder) -> None:
    temporary = place / _temporary(holder)
    with temporary.open("w") as file:
        json.dump(asdict(holder), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, place / _HOLDER)


def _temporary(holder: Holder) -> str:
    return f".{_HOLDER}.{holder.token}"


def _write_beat(place: Path, generation: int, beats: int) -> None:
    handle = os.open(place / f"beat-{generation}", os.O_WRONLY | (0 if beats else os.O_CREAT))
    try:
        os.pwrite(handle, f"{beats:012d}".encode(), 0)
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_beat(place: Path, generation: int) -> bytes:
    try:
        return (place / f"beat-{generation}").read_bytes()
    except OSError:
        return b""


def _last_beat(place: Path) -> int:
    return max((int(file.name[5:]) for file in place.glob("beat-*") if file.name[5:].isdigit()), default=0)


def _claims(place: Path) -> int:
    return sum(1 for _ in place.glob("claim-*"))


def _myself(place: Path, environ: Mapping[str, str]) -> Holder:
    return Holder(
        generation=0,
        token=secrets.token_hex(8),
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_started(os.getpid()) or "",
        job=_job(environ),
        start=_start(environ),
        place=place.stat().st_ino,
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
    )


def _is_gone(holder: Holder, place: Path) -> bool:
    """Whether a holder is certainly gone: its process on this machine has ended, or this folder is a copy."""
    if holder.place != place.stat().st_ino:
        return True
    return holder.machine == _machine() and bool(holder.machine) and _started(holder.pid) != holder.started


def _is_before(holder: Holder, environ: Mapping[str, str]) -> bool:
    """Whether a holder is an earlier start of this job, which the scheduler ended before this one."""
    job = _job(environ)
    return holder.job is not None and job is not None and holder.job[0] == job[0] and holder.job[1] < job[1]


def _job(environ: Mapping[str, str]) -> tuple[str, int] | None:
    if job := environ.get("SLURM_JOB_ID"):
        return f"SLURM job {job}", int(environ.get("SLURM_RESTART_COUNT") or 0)
    if environ.get("TORCHELASTIC_RUN_ID", "none") != "none":
        return f"torchrun {environ['TORCHELASTIC_RUN_ID']}", int(environ.get("TORCHELASTIC_RESTART_COUNT") or 0)
    return None


def _start(environ: Mapping[str, str]) -> str | None:
    """Id shared by the ranks of one start."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    if "TORCHELASTIC_RUN_ID" not in environ:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        if "SLURM_STEP_ID" not in environ:
            return None
    return "/".join(environ.get(name, "") for name in names)


def _machine() -> str:
    """Id of this machine since boot, and of its process namespace; empty if unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Start time of a process in ticks since boot; None if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else fields[18]
