"""Progress output for files: one line per epoch instead of a progress bar."""

import time

import lightning.pytorch as L
from lightning.pytorch.callbacks import ProgressBar


class EpochLines(ProgressBar):
    """Prints epoch, metrics and seconds after each epoch, on rank 0, instead of Lightning's progress bar.

    A progress bar redraws itself, which in a log file or a pipe gives no output until the end, or thousands of pieces.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._started = 0.0

    def disable(self) -> None:
        """Stop printing; Lightning calls it on ranks other than 0."""
        self._enabled = False

    def enable(self) -> None:
        """Start printing again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, for runs resumed in the middle of an epoch."""
        self._started = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's line."""
        metrics = trainer.callback_metrics  # on every rank: it may reduce over ranks
        if not self._enabled:
            return
        ours = {name: value for name, value in metrics.items() if name.startswith(("train/", "val/"))}
        others = {name: value for name, value in metrics.items() if not name.startswith(("loader/", "lr-"))}
        shown = [f"{name} {value:.4f}" for name, value in sorted((ours or others).items())]
        epoch = f"epoch {trainer.current_epoch + 1}"
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            epoch += f"/{trainer.max_epochs}"
        print("  ".join([epoch, *shown, f"{time.monotonic() - self._started:.1f} s"]), flush=True)
