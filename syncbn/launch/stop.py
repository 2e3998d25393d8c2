"""SIGTERM, SIGUSR1 and Ctrl-C: they end a run that is starting, and ask one that trains to stop where it can go on.

A handler that saves or talks to other ranks does so wherever the training happens to be, in the middle of a collective
say, and ranks that are in different places then wait for each other. So here a signal only leaves a note, at which
`syncbn.training.Preemption` looks at the end of each batch.

A thread takes the note, woken by the system through a pipe. Python's own handlers run only when the main thread is back
from C++, and one that waits there for another rank may never be.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from syncbn.launch.run_id import VARIABLE
from syncbn.launch.slurm import requeue
from syncbn.launch.world import current_world

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_SAME_KEYSTROKE_S = 1.0  # Ctrl-C reaches a rank twice where a launcher passes it on


class Stopped(SystemExit):
    """The run stopped because a signal asked for it. The process ends with 128 + its number, as a shell reports it."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class _Signals:
    """The handlers of one process and what they have noted."""

    def __init__(self, deferred: bool) -> None:
        self.pid = os.getpid()
        self.signum = 0
        self.noted_at = 0.0
        self.deferred = deferred
        self.said = False
        self.forward: Callable[[int], None] | None = None
        read, self.pipe = os.pipe()
        os.set_blocking(self.pipe, False)
        self.before = {signum: signal.signal(signum, _leave_it_to_the_thread) for signum in SIGNALS}
        signal.set_wakeup_fd(self.pipe, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # `held` in the process that started this one
        threading.Thread(target=self.listen, args=(read,), name="syncbn-stop", daemon=True).start()

    def listen(self, read: int) -> None:
        while signums := os.read(read, 1):
            if signal.getsignal(signums[0]) is _leave_it_to_the_thread:  # else torchrun's agent has its own by now
                self.take(signums[0])
        os.close(read)

    def take(self, signum: int) -> None:
        if self.forward is not None:
            self.forward(signum)
        if not self.deferred:
            say("before training", signum)
            _exit_now(signum)
        impatient = self.signum == signal.SIGINT and time.monotonic() - self.noted_at > _SAME_KEYSTROKE_S
        if impatient and signum != signal.SIGUSR1:
            say("at once", signum)
            _exit_now(signum)
        if not self.signum:
            self.signum, self.noted_at = signum, time.monotonic()

    def restore(self) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(-1)
        os.close(self.pipe)


_active: _Signals | None = None


def install(deferred: bool = False) -> bool:
    """Take the signals over. Does nothing, and says so by False, if they are already, or outside of the main thread.

    Args:
        deferred: as after `defer`.
    """
    global _active
    if threading.current_thread() is not threading.main_thread() or (_active and _active.pid == os.getpid()):
        return False
    _active = _Signals(deferred)
    if current_world().launcher == "torchrun":
        _stop_with_the_launcher()
    return True


def _stop_with_the_launcher() -> None:
    """Let the kernel send SIGTERM when the process that started this one is gone, killed for want of memory say.

    Else its ranks would train on, beside those that the next start of the run brings, in one folder.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def restore() -> None:
    """Give the signals back to whom they were taken from."""
    global _active
    if _active is not None:
        _active.restore()
        _active = None


def defer(forward: Callable[[int], None] | None = None) -> None:
    """From here on a signal is noted, not obeyed: who trains asks `requested`.

    A second Ctrl-C, a second after the first, ends the process at once even so.

    Args:
        forward: called with each signal, for the processes that this one has started.
    """
    if _active is not None:
        _active.deferred, _active.forward = True, forward


def obey() -> None:
    """From here on a signal ends the process again.

    Raises:
        Stopped: one was noted, and nobody asked for it.
    """
    if _active is not None:
        _active.deferred, _active.forward = False, None
        if _active.signum:
            say("before training", _active.signum)
            raise Stopped(_active.signum)


@contextmanager
def held() -> Iterator[None]:
    """For a process that starts ranks: a signal that reaches one of them before it calls `install` waits until then.

    A process inherits what the thread that starts it blocks. This process itself goes on noting signals, in the thread
    that listens.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def requested() -> int:
    """The number of the signal that asked this process to stop; 0 if none did."""
    return _active.signum if _active is not None else 0


def say(where: str, signum: int) -> None:
    """Tell, on rank 0 and once, that the run was stopped and how it goes on.

    SIGUSR1 is what SLURM was told to send before a job's time is over (slurm/train.sbatch): the job is queued again.
    """
    spawned = os.environ.get("LOCAL_RANK", "0")  # a rank that Lightning started; current_world knows launchers alone
    if current_world().rank or int(spawned) or (_active and _active.said):
        return
    if _active:
        _active.said = True
    run_id = os.environ.get(VARIABLE)
    how = f"; to go on, add run_id={run_id} resume=auto" if run_id else ""
    print(f"\nstopped by {signal.Signals(signum).name} {where}{how}", file=sys.stderr, flush=True)
    if signum == signal.SIGUSR1 and (answer := requeue()):
        print(answer, file=sys.stderr, flush=True)


def _leave_it_to_the_thread(signum: int, frame: object) -> None:
    """Python must have a handler for the pipe to be written to."""


def _exit_now(signum: int) -> None:
    sys.stdout.flush()
    os._exit(128 + signum)


def _let_go_in_a_worker() -> None:
    """In a forked process, a DataLoader's worker say: its signals are not the rank's.

    It goes on working while the rank finishes its batch: what is sent to the rank's process group, Ctrl-C or what
    torchrun passes on, doesn't reach it, and what SLURM sends to every process it ignores.
    """
    global _active
    if _active is None:
        return
    _active = None
    signal.set_wakeup_fd(-1)
    os.setpgid(0, 0)
    for signum, handler in {
        signal.SIGINT: signal.SIG_IGN,
        signal.SIGUSR1: signal.SIG_IGN,
        signal.SIGTERM: signal.SIG_DFL,
    }.items():
        signal.signal(signum, handler)


os.register_at_fork(after_in_child=_let_go_in_a_worker)
