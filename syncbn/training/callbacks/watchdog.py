"""A run in which nothing moves any more ends, and says which rank it waits for."""

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn

from syncbn.training.callbacks.watchdog_options import WatchdogOptions as Options
from syncbn.training.watch import Watch


class Watchdog(L.Callback):
    """Ends all ranks with exit code 124 when one of them stands still, and says which one, where, and who waits for it.

    Every rank has a thread that looks where its training is, by the Python stack, and tells the others, through the
    store by which they found each other. A rank stands still when, for too long, it has neither begun nor ended a batch
    and isn't waiting for another rank; or when its process or machine doesn't answer. Where all ranks wait, they wait
    for each other in different places, which are told.

    Nothing is added to a step. On a GPU the host runs ahead, and stands in the step that reads a result. A debugger's
    prompt isn't standing still.

    Args:
        timeout_s: seconds that a training, validation or test step may take.
        slow_timeout_s: seconds for all else: between two batches, to load one, to save a checkpoint, to compile a step.
            A process group has a time-out, too, `trainer.strategy.timeout_s`, for the ranks that wait meanwhile; it
            should be longer.

    Raises:
        ValueError: a time-out that isn't positive, or a step that may take longer than all else.
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
        """Start to watch, before the ranks wait for each other for the first time."""
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
        """Watch no longer."""
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """The same, where Lightning doesn't tear down: the exception says what is wrong."""
        self.teardown(trainer, pl_module, "")

    def on_train_batch_start(self, *_: Any) -> None:
        """A step begins."""
        self._moved(in_step=True)

    def on_train_batch_end(self, *_: Any) -> None:
        """A step has ended."""
        self._moved(in_step=False)

    def on_validation_batch_start(self, *_: Any) -> None:
        """A step begins."""
        self._moved(in_step=True)

    def on_validation_batch_end(self, *_: Any) -> None:
        """A step has ended."""
        self._moved(in_step=False)

    def on_test_batch_start(self, *_: Any) -> None:
        """A step begins."""
        self._moved(in_step=True)

    def on_test_batch_end(self, *_: Any) -> None:
        """A step has ended."""
        self._moved(in_step=False)

    def on_train_epoch_end(self, *_: Any) -> None:
        """Something was done between two steps."""
        self._moved(in_step=False)

    def on_save_checkpoint(self, *_: Any) -> None:
        """Something is done between two steps."""
        self._moved(in_step=False)

    def _moved(self, in_step: bool) -> None:
        if self._watch is not None:
            self._watch.in_step = in_step
            self._watch.moves += 1
