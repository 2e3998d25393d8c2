"""Starts of `syncbn train` as processes of their own, and the processes that they leave."""

import atexit
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

STALE_S = 8
_UNSET = ("SYNCBN_RUN_ID", "WANDB_", "SLURM_", "TORCHELASTIC_", "PET_")
_SET = {"SYNCBN_LOCK_STALE_S": str(STALE_S), "WANDB_MODE": "offline", "NO_COLOR": "1", "MPLBACKEND": "Agg"}


def environment() -> dict[str, str]:
    """Environment of every start."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_UNSET)}
    return kept | _SET | {"OMP_NUM_THREADS": "1"}


def warm_up() -> None:
    """Import what a run needs, once for all starts that are forked from this process."""

    import syncbn.cli.train
    import syncbn.run.fit  # noqa: F401


@dataclass
class Start:
    """A start of a run, as the leader of a session.

    Attributes:
        pid: its process.
        folder: working directory of all its processes.
        log: file of its output.
        began_at: length of the log before it, in bytes.
        code: exit code once it has ended, negative for a signal.
    """

    pid: int
    folder: Path
    log: Path
    began_at: int
    code: int | None = None

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, timeout_s: float = 240) -> int:
        """Exit code, after its end.

        Raises:
            TimeoutError: it runs on; it is killed.
        """
        until = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                end_all(self.folder)
                raise TimeoutError(f"a start ran on for {timeout_s} s")
            time.sleep(0.01)
        return code

    def said(self) -> str:
        """What it has printed."""
        with self.log.open("rb") as file:
            file.seek(self.began_at)
            return file.read().decode(errors="replace")

    def signal(self, signum: int, group: bool = False) -> None:
        """Send it a signal, or its whole process group, as a terminal does."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, signum)

    def ranks(self) -> list[int]:
        """Processes of its ranks: those that torchrun has started, or itself."""
        return _children(self.pid, lambda command: b"syncbn" in command and b"train" in command) or [self.pid]

    def workers(self) -> list[int]:
        """Processes of the loader's workers, which are forked from ranks and have their command line."""
        found = []
        for rank in self.ranks():
            with suppress(OSError):
                own = Path(f"/proc/{rank}/cmdline").read_bytes()
                found += _children(rank, lambda command, own=own: command == own)  # type: ignore[misc]
        return found


def start(words: tuple[str, ...], folder: Path, log: Path, *, cold: bool) -> Start:
    """Start `syncbn train <words>` in a folder.

    Args:
        words: of the command line.
        folder: working directory.
        log: file to append output to.
        cold: whether Python starts anew. Otherwise the process is forked from this one, which `warm_up` has prepared:
            that saves the seconds that imports take.
    """
    log.touch()
    began_at = log.stat().st_size
    if cold:
        with log.open("ab") as file:
            command = [sys.executable, "-m", "syncbn", "train", *words]
            process = subprocess.Popen(
                command, cwd=folder, env=environment(), stdout=file, stderr=file, start_new_session=True
            )
        process.returncode = 0  # waited for by `poll`
        return Start(process.pid, folder, log, began_at)
    sys.stdout.flush()
    sys.stderr.flush()
    if not (pid := os.fork()):
        _become(words, folder, log)
    return Start(pid, folder, log, began_at)


def _become(words: tuple[str, ...], folder: Path, log: Path) -> NoReturn:
    """Be `syncbn train` in a forked process."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # should the soak run under nohup
        os.chdir(folder)
        handle = os.open(log, os.O_APPEND | os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(handle, stream)
        environ = environment()
        os.environ.clear()
        os.environ.update(environ)
        sys.argv = ["syncbn", *words]
        from syncbn.cli.train import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        os._exit(code)


def processes_in(folder: Path) -> list[int]:
    """Processes that work in a folder and haven't ended."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == folder.resolve() and _state(process) not in "ZX":
                found.append(int(process.name))
    return found


def end_all(folder: Path) -> None:
    """Kill what works in a folder."""
    for _ in range(100):
        if not (left := processes_in(folder)):
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _children(parent: int, wanted: Callable[[bytes], bool]) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and fields[0] not in "ZX" and wanted((process / "cmdline").read_bytes()):
                found.append(int(process.name))
    return found


def _state(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[0]
