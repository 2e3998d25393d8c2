"""Fits and tests that a signal may interrupt."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from typing import NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.multiprocessing.spawn import ProcessExitedException

from syncbn.launch import stop
from syncbn.launch.faults import Fault, another_failed
from syncbn.launch.stop import Stopped
from syncbn.norm.core.messages import first_line
from syncbn.training import watch

_PATIENCE_S = 5.0
_LOST = ("left the process group", "Connection closed", "Connection reset", "Broken pipe")


@contextmanager
def stoppable(trainer: Trainer) -> Iterator[None]:
    """Raise `Stopped` for any failure inside that follows a signal.

    A rank may lose its peer or its data before the end of the batch; the run then resumes from the previous checkpoint.
    """
    launcher = trainer.strategy.launcher
    try:
        passed_on = _passed_on(launcher) if isinstance(launcher, _MultiProcessingLauncher) else nullcontext()
        with ends_with_its_peers(), passed_on:
            yield
    except Fault:
        raise
    except Exception as error:
        if not (signum := stop.requested()):
            raise
        if _is_lost_peer(error) and another_failed():  # which has said why
            raise Stopped(signum) from error
        stop.say(f"before it could save: {first_line(error)}", signum)
        raise Stopped(signum) from error


@contextmanager
def ends_with_its_peers() -> Iterator[None]:
    """End quietly for a message that fails because another rank has ended, which has said why.

    Raises:
        Fault: no rank on this node has failed.
    """
    try:
        yield
    except Exception as error:
        if _is_lost_peer(error) and not stop.requested():
            _end_after(error)
        raise


def _is_lost_peer(error: Exception) -> bool:
    """Whether a message to or from another rank failed since that one has ended."""
    text = str(error)  # of our exchange and of gloo, which have no class for it
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST)


def _end_after(error: Exception) -> NoReturn:
    """End after a lost peer, which has said why or was killed: its launcher knows that in a moment, and ends this rank.

    Raises:
        Stopped: quietly, if a rank on this node has failed.
        Fault: otherwise.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while not another_failed() and time.monotonic() < deadline:
        time.sleep(0.05)
    if another_failed():
        raise Stopped(signal.SIGTERM) from error
    raise Fault(
        f"{first_line(error)}; its own output says why, and the run goes on from its last checkpoint by resume=auto"
    ) from error


@contextmanager
def _passed_on(launcher: _MultiProcessingLauncher) -> Iterator[None]:
    """Forward signals to the ranks spawned by trainer=ddp_sim, and end as they do."""
    stop.defer(forward=launcher.kill)
    resource_tracker.ensure_running()  # otherwise started with the first rank, which would end `held`
    try:
        with stop.held():
            yield
    except ProcessExitedException as ended:
        if ended.exit_code == watch.EXIT_CODE:
            raise SystemExit(watch.EXIT_CODE) from None
        if ended.exit_code not in [128 + signum for signum in stop.SIGNALS]:
            raise
        raise Stopped(ended.exit_code - 128) from None  # reported by the rank
    if signum := stop.requested():
        stop.say("after training", signum)
        raise Stopped(signum)
