"""Sample predictions and norm statistics for W&B."""

from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from syncbn.norm.core.arguments import check_arguments
from syncbn.training.callbacks.norm_statistics import running_statistics
from syncbn.training.callbacks.wandb_media_options import WandbMediaOptions as Options

MIN_SIDE = 64  # smallest side of an image, in pixels


class WandbMedia(L.Callback):
    """Logs to W&B a table of sample predictions and histograms of each norm's running statistics.

    After every n-th validation, and after the last: `predictions`, a table with image, label, prediction and
    confidence of the first validation samples of rank 0; and `norm/<layer>/running_mean` and `.../running_var`,
    histograms over the channels. The table is of a module whose `validation_step` returns the logits (N, num_classes)
    of its batch (images, labels), as `ClassificationTask`'s does; a warning says where it doesn't. It does nothing, and
    says so, without a `WandbLogger`. Needs wandb (`pip install syncbn[train]`).

    Args:
        num_samples: number of rows of the table; 0 for no table.
        every_n_epochs: epochs between two logs.
        histograms: whether to log the norm statistics.

    Raises:
        ValueError: a negative number of samples, or every_n_epochs below 1.
    """

    def __init__(
        self,
        num_samples: int = Options.num_samples,
        every_n_epochs: int = Options.every_n_epochs,
        histograms: bool = Options.histograms,
    ) -> None:
        check_arguments(Options, locals())
        self.num_samples = num_samples
        self.every_n_epochs = every_n_epochs
        self.histograms = histograms
        self._samples: list[tuple[Tensor, int, Tensor]] = []  # image (C, H, W), label, logits (num_classes)
        self._logged_step = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Warn if there is no W&B logger."""
        if stage == "fit" and _logger(trainer) is None:
            rank_zero_info("WandbMedia: nothing is sent to W&B, the trainer has no WandbLogger (logger=wandb adds one)")

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Clear the samples of the previous validation."""
        self._samples.clear()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Store the first samples with their logits."""
        missing = self.num_samples - len(self._samples)
        if missing <= 0 or not trainer.is_global_zero or _logger(trainer) is None:
            return
        pair = isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
        if not (pair and isinstance(outputs, Tensor) and outputs.dim() == 2):
            self.num_samples = 0
            rank_zero_warn(
                f"no table of predictions: validation_step returned {type(outputs).__name__} for a batch of "
                f"{type(batch).__name__}; it takes the logits (N, num_classes) of a batch (images, labels)"
            )
            return
        images, labels = batch
        for image, label, logits in zip(images[:missing].cpu(), labels[:missing].tolist(), outputs.cpu(), strict=False):
            self._samples.append((image, label, logits))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log, every n-th epoch."""
        if not trainer.sanity_checking and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the last state, in any epoch."""
        self._log(trainer, pl_module)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logger = _logger(trainer)
        if logger is None or not trainer.is_global_zero or trainer.global_step == self._logged_step:
            return
        self._logged_step = trainer.global_step
        media: dict[str, Any] = {}
        if self._samples:
            media["predictions"] = self._table(getattr(pl_module, "class_names", None))
        if self.histograms:
            media |= _histograms(pl_module)
        # W&B's own step counts calls; Lightning's logger plots metrics over this one.
        logger.experiment.log({**media, "trainer/global_step": trainer.global_step})

    def _table(self, names: tuple[str, ...] | None) -> Any:
        import wandb

        table = wandb.Table(columns=["image", "label", "prediction", "confidence"])
        for image, label, logits in self._samples:
            confidence, prediction = logits.float().softmax(dim=0).max(dim=0)
            label_name, predicted_name = (names[i] if names else str(i) for i in (label, int(prediction)))
            table.add_data(wandb.Image(_picture(image)), label_name, predicted_name, float(confidence))
        return table


def _logger(trainer: L.Trainer) -> WandbLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)


def _histograms(pl_module: L.LightningModule) -> dict[str, Any]:
    import wandb

    return {
        f"norm/{layer}/{name}": wandb.Histogram(values.tolist())
        for layer, mean, var in running_statistics(pl_module)
        for name, values in (("running_mean", mean), ("running_var", var))
        if torch.isfinite(values).all()  # a histogram of infinities has no bins
    }


def _picture(image: Tensor) -> np.ndarray:
    """Convert an image (C, H, W) of any range to (H', W', C) bytes, C of 1 or 3, enlarged by an integer factor."""
    image = image[:3] if len(image) >= 3 else image[:1]
    low, high = image.min(), image.max()
    image = ((image - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)
    factor = max(1, -(-MIN_SIDE // max(image.shape[1:])))
    return image.repeat_interleave(factor, 1).repeat_interleave(factor, 2).permute(1, 2, 0).numpy()
