"""Recalibration of running statistics before validations."""

import copy
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from syncbn.data.loader import BatchLoader
from syncbn.norm.core.arguments import check_arguments
from syncbn.policy.recalibrate import moving_layers, other_statistics, recalibrate
from syncbn.training.callbacks.found import averages_weights
from syncbn.training.callbacks.recalibrate_norm_options import RecalibrateNormOptions as Options


class RecalibrateNorm(L.Callback):
    """Recalibrates the norms on training batches before every n-th validation, for statistics of the current weights.

    A checkpoint after the validation has the validated statistics. Training steps don't read running statistics, so
    training isn't changed. If this callback comes after Lightning's weight averaging, the averaged network is
    recalibrated. A fit without validation is recalibrated once, at its end. See `syncbn.recalibrate`. Frozen statistics
    stay as they are, and a network without others is left alone, with a warning unless its weights are averaged.

    Args:
        every_n_epochs: epochs between two recalibrations; there is always one in the last epoch.
        max_batches: training batches of each rank to use; all when None.

    Raises:
        ValueError: a number below 1.
        MisconfigurationException: in `fit`, a layer with statistics of another kind, such as a covariance.
    """

    def __init__(
        self,
        every_n_epochs: int = Options.every_n_epochs,
        max_batches: int | None = Options.max_batches,
    ) -> None:
        check_arguments(Options, locals())
        self.every_n_epochs = every_n_epochs
        self.max_batches = max_batches

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn if there is nothing to do; averaged weights need no recalibration then."""
        layers = moving_layers(pl_module)
        for path, layer in layers:
            if others := other_statistics(layer):
                raise MisconfigurationException(
                    f"{path} normalizes by more than a mean and a variance ({', '.join(others)}), which can't be "
                    "recalibrated: leave RecalibrateNorm out, and averages of the weights (callbacks ema and swa)"
                )
        averages = averages_weights(trainer)
        if not averages and not layers:
            rank_zero_warn("RecalibrateNorm does nothing: no layer has running statistics that may change")

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Recalibrate every n epochs."""
        epoch = trainer.current_epoch + 1
        if not trainer.sanity_checking and (epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs):
            self._recalibrate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Recalibrate if there was no validation."""
        if not trainer.enable_validation:
            self._recalibrate(trainer, pl_module)

    def _recalibrate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.train_dataloader is None:  # trainer.validate() has none
            return
        layers = [path for path, _ in moving_layers(pl_module)]  # each time: they may be frozen in between
        if not layers:
            return
        precision = trainer.precision_plugin
        batches = map(precision.convert_input, _epoch(trainer.train_dataloader))
        with precision.forward_context():
            recalibrate(pl_module, batches, max_batches=self.max_batches, include=layers)


def _epoch(loader: Any) -> Iterable[Any]:
    """Batches of an epoch from its start, independently of the training's position in it."""
    if isinstance(loader, BatchLoader):
        return loader.batches_from(0)
    return copy.copy(loader)  # the copy counts its own deliveries
