"""Watchdog for hanging runs."""

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn

from syncbn.training.callbacks.watchdog_options import WatchdogOptions as Options
from syncbn.training.watch import Watch


class Watchdog(L.Callback):
    """Stops all ranks with exit code 124 when one hangs, and reports which one, where, and which ranks wait for it.

    Every rank has a thread that finds the training's position in the Python stack and publishes it in the store of the
    default group. A rank hangs if, for too long, it has neither started nor ended a batch and isn't waiting for another
    rank; or if its process or machine doesn't respond. If all ranks wait, they wait for each other at different places,
    which are reported.

    It adds nothing to a step. On a GPU the host runs ahead, and blocks in the step that reads a result. A debugger's
    prompt doesn't count as hanging.

    Args:
        timeout_s: time limit of a training, validation or test step, in seconds.
        slow_timeout_s: time limit of everything else: loading a batch, saving a checkpoint, compiling a step. The
            timeout of the process group, `trainer.strategy.timeout_s`, for ranks that wait meanwhile, should be longer.

    Raises:
        ValueError: a timeout that isn't positive, or a step's limit above the other one.
    """

    def __init__(self, timeout_s: float = Options.timeout_s, slow_timeout_s: float = Options.slow_timeout_s) -> None:
        if not 0 < timeout_s <= slow_timeout_s:
            raise ValueError(
                f"timeout_s must be positive and at most slow_timeout_s, got {timeout_s} and {slow_timeout_s} seconds"
            )
        self.timeout_s = timeout_s
        self.slow_timeout_s = slow_timeout_s
        self._watch: Watch | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start watching, before the ranks wait for each other for the first time."""
        strategy = trainer.strategy
        limit = strategy._timeout if isinstance(strategy, DDPStrategy) else None
        if limit is not None and limit.total_seconds() <= self.slow_timeout_s:
            rank_zero_warn(
                f"the watchdog waits up to {self.slow_timeout_s:g} s, the process group {limit.total_seconds():g} s: "
                "it may be too late to say whom the ranks wait for; make callbacks.watchdog.slow_timeout_s shorter or "
                "trainer.strategy.timeout_s longer"
            )
        self._watch = Watch(trainer, pl_module, self.timeout_s, self.slow_timeout_s)
        self._watch.start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop watching where Lightning doesn't tear down."""
        self.teardown(trainer, pl_module, "")

    def on_train_batch_start(self, *_: Any) -> None:
        """Record the start of a step."""
        self._moved(in_step=True)

    def on_train_batch_end(self, *_: Any) -> None:
        """Record the end of a step."""
        self._moved(in_step=False)

    def on_validation_batch_start(self, *_: Any) -> None:
        """Record the start of a step."""
        self._moved(in_step=True)

    def on_validation_batch_end(self, *_: Any) -> None:
        """Record the end of a step."""
        self._moved(in_step=False)

    def on_test_batch_start(self, *_: Any) -> None:
        """Record the start of a step."""
        self._moved(in_step=True)

    def on_test_batch_end(self, *_: Any) -> None:
        """Record the end of a step."""
        self._moved(in_step=False)

    def on_train_epoch_end(self, *_: Any) -> None:
        """Record progress between two steps."""
        self._moved(in_step=False)

    def on_save_checkpoint(self, *_: Any) -> None:
        """Record progress between two steps (saving)."""
        self._moved(in_step=False)

    def _moved(self, in_step: bool) -> None:
        if self._watch is not None:
            self._watch.in_step = in_step
            self._watch.moves += 1
