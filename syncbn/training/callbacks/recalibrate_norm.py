"""Running statistics measured anew before each validation."""

import copy
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as L

from syncbn.data.loader import BatchLoader
from syncbn.norm.core.arguments import check_arguments
from syncbn.policy import recalibrate
from syncbn.training.callbacks.recalibrate_norm_options import RecalibrateNormOptions as Options


class RecalibrateNorm(L.Callback):
    """Recalibrates the norms on training batches before every n-th validation, so that it evaluates today's weights.

    What validation measures is what a checkpoint after it holds. A training step doesn't read running statistics, so
    training itself is the same. After Lightning's weight averaging, in the list of callbacks, it is the averaged
    network that is recalibrated. A fit without validation is recalibrated once, at its end. See `syncbn.recalibrate`.

    Args:
        every_n_epochs: epochs between two recalibrations; the last epoch always has one.
        max_batches: training batches of each rank to use; all when None.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(
        self,
        every_n_epochs: int = Options.every_n_epochs,
        max_batches: int | None = Options.max_batches,
    ) -> None:
        check_arguments(Options, locals())
        self.every_n_epochs = every_n_epochs
        self.max_batches = max_batches

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Recalibrate, when it is time."""
        epoch = trainer.current_epoch + 1
        if not trainer.sanity_checking and (epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs):
            self._recalibrate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Recalibrate, where there was no validation."""
        if not trainer.enable_validation:
            self._recalibrate(trainer, pl_module)

    def _recalibrate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.train_dataloader is None:  # trainer.validate() has none
            return
        precision = trainer.precision_plugin
        batches = map(precision.convert_input, _epoch(trainer.train_dataloader))
        with precision.forward_context():
            recalibrate(pl_module, batches, max_batches=self.max_batches)


def _epoch(loader: Any) -> Iterable[Any]:
    """An epoch's batches from its start, wherever training is in it, or goes on in it after a stop."""
    if isinstance(loader, BatchLoader):
        return loader.batches_from(0)
    return copy.copy(loader)  # a loader that counts what it delivers goes on counting its own
