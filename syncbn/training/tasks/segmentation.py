"""LightningModule for semantic segmentation."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassJaccardIndex

from syncbn.training.tasks.classification import ClassificationTask
from syncbn.training.tasks.classification_options import ClassificationOptions as Options


class SegmentationTask(ClassificationTask):
    """Trains `net` to classify every pixel, by cross-entropy over the pixels of all ranks.

    As `ClassificationTask`, with labels (N, H, W) and logits (N, num_classes, H, W), so acc is the share of correct
    pixels. Also logged per epoch: val/miou and test/miou, the intersection over union of predicted and true pixels of a
    class, over all ranks' images, averaged over the classes that occur.

    The arguments are those of `ClassificationTask`.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        num_classes: int = 21,
        label_smoothing: float = Options.label_smoothing,
        class_names: list[str] | tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(net, optimizer, scheduler, num_classes, label_smoothing, class_names)
        self.val_miou = MulticlassJaccardIndex(num_classes, validate_args=False)
        self.test_miou = MulticlassJaccardIndex(num_classes, validate_args=False)

    @property
    def monitored_names(self) -> list[str]:
        """Metrics that a fit logs, for callbacks to monitor."""
        return [*super().monitored_names, "val/miou"]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Add the batch to val/loss, val/acc and val/miou; returns the logits, for callbacks that show predictions."""
        logits = super().validation_step(batch, batch_idx)
        self._overlap("val/miou", self.val_miou, logits, batch[1])
        return logits

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Add the batch to test/loss, test/acc, test/miou and the confusion matrix of pixels."""
        logits = super().test_step(batch, batch_idx)
        self._overlap("test/miou", self.test_miou, logits, batch[1])
        return logits

    def _overlap(self, name: str, metric: MulticlassJaccardIndex, logits: Tensor, labels: Tensor) -> None:
        if len(labels):  # torchmetrics can't reshape an empty batch
            metric.update(logits, labels)
        self.log(name, metric, on_step=False, on_epoch=True, prog_bar=True)
