"""Whether a run's folder is still the run's, before anything is written to it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from syncbn.training.checkpoint import AtomicCheckpointIO
from syncbn.training.loggers import RunFolderCSVLogger, RunFolderWandbLogger


def make_folder(trainer: L.Trainer, folder: str | Path | None = None) -> None:
    """Make the folder that a callback writes to, on rank 0.

    To be called by `setup` only: a folder that was removed or renamed later isn't made again.

    Args:
        trainer: its `default_root_dir` is the default.
        folder: of the callback.
    """
    if trainer.is_global_zero:
        Path(folder or trainer.default_root_dir).mkdir(parents=True, exist_ok=True)


class ChecksFolder(L.Callback):
    """Calls `check` on rank 0 before anything is written to the run's folder: put it first of the callbacks.

    Before checkpoints, rows of metrics.csv, what W&B logs, and what other callbacks write.

    Args:
        check: raises where another start of the run has taken its folder over.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let those that write ask, too."""
        if trainer.is_global_zero:
            self.check()
            writers: list[Any] = [trainer.strategy.checkpoint_io, *trainer.loggers]
            for writer in writers:
                if isinstance(writer, AtomicCheckpointIO | RunFolderCSVLogger | RunFolderWandbLogger):
                    writer.check = self.check

    def _check(self, trainer: L.Trainer, *_: Any) -> None:
        """Check the folder, on rank 0."""
        if trainer.is_global_zero:
            self.check()

    # Behind these the other callbacks write.
    on_fit_start: Callable[..., None] = _check
    on_train_epoch_end: Callable[..., None] = _check
    on_validation_end: Callable[..., None] = _check
    on_train_end: Callable[..., None] = _check
    on_fit_end: Callable[..., None] = _check
    on_test_start: Callable[..., None] = _check
    on_test_end: Callable[..., None] = _check
