"""SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and Ctrl-C end a run that is starting, and ask one that trains to stop and save.

A handler that saves or communicates would run at any point of the training, possibly inside a collective, and ranks at
different points would then wait for each other. So a signal only sets a flag here, which `syncbn.training.Preemption`
checks at the end of each batch.

A thread sets the flag, woken by the system through a pipe. Python's own handlers run only when the main thread returns
from C++, which may never happen if it waits there for another rank.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from syncbn.launch.faults import another_failed, note_end
from syncbn.launch.run_id import VARIABLE
from syncbn.launch.slurm import requeue
from syncbn.launch.world import current_world

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # of a batch system, some time before the end
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *WARNINGS)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_SAME_KEYSTROKE_S = 1.0  # Ctrl-C reaches a rank twice if a launcher forwards it


class Stopped(SystemExit):
    """The run was stopped by a signal. The process exits with 128 + the signal's number, as in shells."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


def ignored() -> set[signal.Signals]:
    """Signals that stay ignored: under `nohup`, a closed terminal is to end nothing."""
    return {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()


class _Signals:
    """Signal handlers of one process and their state."""

    def __init__(self, deferred: bool) -> None:
        self.pid = os.getpid()
        self.signum = 0
        self.noted_at = 0.0
        self.deferred = deferred
        self.said = False
        self.forward: Callable[[int], None] | None = None
        read, self.pipe = os.pipe()
        os.set_blocking(self.pipe, False)
        taken = set(SIGNALS) - ignored()
        self.before = {signum: signal.signal(signum, _leave_it_to_the_thread) for signum in taken}
        signal.set_wakeup_fd(self.pipe, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked by `held` in the parent process
        threading.Thread(target=self.listen, args=(read,), name="syncbn-stop", daemon=True).start()

    def listen(self, read: int) -> None:
        while signums := os.read(read, 1):
            if signal.getsignal(signums[0]) is _leave_it_to_the_thread:  # otherwise torchrun's agent has its own
                self.take(signums[0])
        os.close(read)

    def take(self, signum: int) -> None:
        if self.forward is not None:
            self.forward(signum)
        impatient = self.signum == signal.SIGINT and time.monotonic() - self.noted_at > _SAME_KEYSTROKE_S
        if not self.signum:
            self.signum, self.noted_at = signum, time.monotonic()
        if not self.deferred:
            say("before training", signum)
            _exit_now(signum)
        if impatient and signum not in WARNINGS:
            say("at once", signum)
            _exit_now(signum)

    def restore(self) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(-1)
        os.close(self.pipe)


_active: _Signals | None = None


def install(deferred: bool = False) -> bool:
    """Install the handlers. Returns False, without effect, if they are installed already or outside the main thread.

    Args:
        deferred: whether to start as after `defer`.
    """
    global _active
    if threading.current_thread() is not threading.main_thread() or (_active and _active.pid == os.getpid()):
        return False
    _active = _Signals(deferred)
    if current_world().launcher == "torchrun":
        _stop_with_the_launcher()
    return True


def _stop_with_the_launcher() -> None:
    """Let the kernel send SIGTERM when the parent process is gone, for example killed for lack of memory.

    Otherwise its ranks would continue to train in the same folder as those of the restarted run.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def restore() -> None:
    """Restore the previous handlers."""
    global _active
    if _active is not None:
        _active.restore()
        _active = None


def defer(forward: Callable[[int], None] | None = None) -> None:
    """From now on only record signals; the training checks `requested`.

    A second Ctrl-C, at least a second after the first, still ends the process at once.

    Args:
        forward: function called with each signal, for child processes.
    """
    if _active is not None:
        _active.deferred, _active.forward = True, forward


def obey() -> None:
    """From now on a signal ends the process again.

    Raises:
        Stopped: a signal was recorded and not handled.
    """
    if _active is not None:
        _active.deferred, _active.forward = False, None
        if _active.signum:
            say("before training", _active.signum)
            raise Stopped(_active.signum)


@contextmanager
def held() -> Iterator[None]:
    """Block signals in ranks started inside, until they call `install`; for a process that starts ranks.

    A process inherits the signal mask of the thread that starts it. This process still records signals in its
    listener thread.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def requested() -> int:
    """Number of the signal that asked this process to stop; 0 if none did."""
    return _active.signum if _active is not None else 0


def hung_up(within_s: float) -> bool:
    """Whether the terminal of this process has closed, or does within a moment; False if signals aren't recorded."""
    until = time.monotonic() + within_s
    while _active is not None and _active.signum != signal.SIGHUP:
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return _active is not None


def say(where: str, signum: int) -> None:
    """Print once, on rank 0, that the run was stopped and how it continues.

    It wasn't, and there is nothing to tell, where torchrun ends this rank because another has failed.

    SIGUSR1, or SIGUSR2, is what SLURM was told to send before a job's time is over (slurm/train.sbatch): the job is
    queued again.
    """
    spawned = os.environ.get("LOCAL_RANK", "0")  # a rank started by Lightning; current_world knows only launchers
    if current_world().rank or int(spawned) or (_active and _active.said):
        return
    if signum == signal.SIGTERM and another_failed():
        return
    if _active:
        _active.said = True
    run_id = os.environ.get(VARIABLE)
    how = f"; to go on, add run_id={run_id} resume=auto" if run_id else ""
    print(f"\nstopped by {signal.Signals(signum).name} {where}{how}", file=sys.stderr, flush=True)
    if signum in WARNINGS and (answer := requeue()):
        print(answer, file=sys.stderr, flush=True)


def _leave_it_to_the_thread(signum: int, frame: object) -> None:
    """Do nothing; without a Python handler the pipe isn't written to."""


def _exit_now(signum: int) -> None:
    note_end()
    sys.stdout.flush()
    os._exit(128 + signum)


def _let_go_in_a_worker() -> None:
    """Separate the signals of a forked process, such as a DataLoader's worker, from the rank's.

    It continues to work while the rank finishes its batch: signals to the rank's process group, such as Ctrl-C or those
    from torchrun, don't reach it, and it ignores those that SLURM sends to every process.
    """
    global _active
    if _active is None:
        return
    _active = None
    signal.set_wakeup_fd(-1)
    os.setpgid(0, 0)
    for signum, handler in {
        signal.SIGINT: signal.SIG_IGN,
        signal.SIGHUP: signal.SIG_IGN,
        signal.SIGUSR1: signal.SIG_IGN,
        signal.SIGUSR2: signal.SIG_IGN,
        signal.SIGTERM: signal.SIG_DFL,
    }.items():
        signal.signal(signum, handler)


os.register_at_fork(after_in_child=_let_go_in_a_worker)
