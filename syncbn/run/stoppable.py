"""Fits and tests that a signal may interrupt."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.multiprocessing.spawn import ProcessExitedException

from syncbn.launch import stop
from syncbn.launch.stop import Stopped
from syncbn.norm.core.messages import first_line
from syncbn.training import watch


@contextmanager
def stoppable(trainer: Trainer) -> Iterator[None]:
    """Raise `Stopped` for any failure inside that follows a signal.

    A rank may lose its peer or its data before the end of the batch; the run then resumes from the previous checkpoint.
    """
    launcher = trainer.strategy.launcher
    try:
        with _passed_on(launcher) if isinstance(launcher, _MultiProcessingLauncher) else nullcontext():
            yield
    except Exception as error:
        if not (signum := stop.requested()):
            raise
        stop.say(f"before it could save: {first_line(error)}", signum)
        raise Stopped(signum) from error


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
