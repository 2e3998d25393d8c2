"""Progress for a file: a line for each epoch where there is no terminal to draw a bar in."""

import time

import lightning.pytorch as L
from lightning.pytorch.callbacks import ProgressBar


class EpochLines(ProgressBar):
    """Prints epoch, metrics and seconds after each epoch, on rank 0, in place of Lightning's progress bar.

    A bar redraws itself; in a log file or a pipe that is either nothing until the end or thousands of pieces.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._started = 0.0

    def disable(self) -> None:
        """Print nothing: Lightning asks it of ranks other than 0."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the time: a run that goes on in the middle of an epoch starts none."""
        self._started = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the time."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's line."""
        metrics = trainer.callback_metrics  # on every rank: it may sum over them
        if not self._enabled:
            return
        shown = [
            f"{name} {value:.4f}" for name, value in sorted(metrics.items()) if name.startswith(("train/", "val/"))
        ]
        epoch = f"epoch {trainer.current_epoch + 1}"
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            epoch += f"/{trainer.max_epochs}"
        print("  ".join([epoch, *shown, f"{time.monotonic() - self._started:.1f} s"]), flush=True)
