"""Measurement of the time that training waits for data."""

import time
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_warn

from syncbn.norm.core.arguments import check_arguments
from syncbn.training.callbacks.loader_watch_options import LoaderWatchOptions as Options


class LoaderWatch(L.Callback):
    """Logs the share of each epoch's time that training waits for batches, and warns once if it is too large.

    `loader/wait_share` is (time between the end of a step and the next batch) / (that + the steps' time), of rank 0,
    without the first batch, which waits for workers to start. On a GPU the host runs ahead of the device, so a small
    share may cost nothing, but a share near 1 always does.

    Args:
        max_share: share of the time above which to warn.
        min_batches: smallest number of batches of an epoch to log.

    Raises:
        ValueError: max_share outside of (0, 1), or min_batches below 1.
    """

    def __init__(self, max_share: float = Options.max_share, min_batches: int = Options.min_batches) -> None:
        check_arguments(Options, locals())
        self.max_share = max_share
        self.min_batches = min_batches
        self._warned = False
        self._start_to_count()

    def _start_to_count(self) -> None:
        self._waited = self._worked = 0.0
        self._batches = 0
        self._ended: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start measuring, for a fit that resumes in the middle of an epoch."""
        self._start_to_count()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restart measuring."""
        self._start_to_count()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record that the batch has arrived."""
        self._began = time.perf_counter()
        if self._ended is not None:
            self._waited += self._began - self._ended

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        """Record the end of the step."""
        now = time.perf_counter()
        if self._ended is not None:
            self._worked += now - self._began
            self._batches += 1
        self._ended = now

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the share, and warn once."""
        if self._batches < self.min_batches:
            return
        share = self._waited / (self._waited + self._worked)
        pl_module.log("loader/wait_share", share, rank_zero_only=True)
        if share > self.max_share and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"training waits for its data {100 * share:.0f} % of the time: give the loader more workers "
                "(data.num_workers, where the data has it), make the augmentation cheaper, or the network larger"
            )
