"""Classification as a LightningModule."""

from collections.abc import Callable

import lightning.pytorch as L
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.moments import mean_over_ranks
from syncbn.training.optim import parameter_groups
from syncbn.training.tasks.classification_options import ClassificationOptions as Options


class ClassificationTask(L.LightningModule):
    """Trains `net` to classify, by cross-entropy over the samples of all ranks.

    A rank's loss is weighted by its share of the samples, so that DDP's average of the gradients is the gradient of
    the mean over the global batch when the ranks' batches are unequal or empty. Metrics sum over ranks and count each
    sample once. Logged per epoch: train/loss, train/acc, val/loss, val/acc, test/loss, test/acc. Each loss is the plain
    cross-entropy, so that they can be compared; with label smoothing, what is minimized is logged as train/objective.

    Args:
        net: from images (N, C, H, W) to logits (N, num_classes).
        optimizer: from parameter groups to an optimizer, for example `partial(torch.optim.SGD, lr=0.1,
            weight_decay=1e-4)`; the weight decay leaves biases and norm parameters out.
        scheduler: from (optimizer, total_steps=...) to a schedule, stepped after each optimizer step, for example
            `partial(cosine_with_warmup, warmup_fraction=0.1)`; None keeps the learning rate.
        num_classes: number of logits.
        label_smoothing: part of the training target that is spread over all classes, in [0, 1).
        class_names: names for tables and plots; 0, 1, 2, ... when None.

    Raises:
        ValueError: num_classes below 2, smoothing out of range, or another number of names than of classes.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        num_classes: int = 10,
        label_smoothing: float = Options.label_smoothing,
        class_names: list[str] | tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        check_arguments(Options, locals())
        names = tuple(class_names) if class_names is not None else tuple(str(i) for i in range(num_classes))
        if len(names) != num_classes:
            raise ValueError(f"class_names must be {num_classes} names, one a class, got {len(names)}")
        self.net = net
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.label_smoothing = label_smoothing
        self.class_names = names
        self.train_metrics = _metrics("train", "loss", "acc", *(["objective"] if label_smoothing else []))
        self.val_metrics = _metrics("val", "loss", "acc")
        self.test_metrics = _metrics("test", "loss", "acc")
        self.test_confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self._logged: set[str | None] = set()  # prefixes of the metrics that the current epochs log

    @property
    def monitored_names(self) -> list[str]:
        """The metrics that a fit logs, which a callback can monitor."""
        return [str(name) for metrics in (self.train_metrics, self.val_metrics) for name in metrics]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        return self.net(images)

    def on_fit_start(self) -> None:
        """Logs anew: this trainer may be another one."""
        self._logged.clear()

    def on_train_epoch_start(self) -> None:
        """Logs the training metrics anew."""
        self._logged.discard("train/")

    def on_validation_epoch_start(self) -> None:
        """Logs the validation metrics anew."""
        self._logged.discard("val/")

    def on_test_epoch_start(self) -> None:
        """Logs the test metrics anew."""
        self._logged.discard("test/")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean loss over the samples of all ranks, as far as this rank's gradient is concerned."""
        images, labels = batch
        logits = self(images)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        if self.label_smoothing:
            self.train_metrics["objective"].update(losses.detach().float())
        self._update(self.train_metrics, logits, labels)
        return mean_over_ranks(losses)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Adds the batch to val/loss and val/acc; returns the logits, for callbacks that show predictions."""
        images, labels = batch
        logits = self(images)
        self._update(self.val_metrics, logits, labels)
        return logits

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Adds the batch to test/loss, test/acc and the confusion matrix; returns the logits."""
        images, labels = batch
        logits = self(images)
        self._update(self.test_metrics, logits, labels)
        if len(labels):  # torchmetrics can't reshape an empty batch, which a rank may have at the end of the data
            self.test_confusion.update(logits, labels)
        return logits

    def on_test_epoch_end(self) -> None:
        """Makes `confusion_matrix` (num_classes, num_classes) of all ranks' samples: rows true, columns predicted."""
        self.confusion_matrix = self.test_confusion.compute().cpu()
        self.test_confusion.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over decaying and non-decaying parameters, and the schedule stepped with it."""
        optimizer = self.optimizer(parameter_groups(self.net))
        if self.scheduler is None:
            return optimizer
        total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.scheduler(optimizer, total_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _update(self, metrics: MetricCollection, logits: Tensor, labels: Tensor) -> None:
        logits = logits.detach()
        metrics["loss"].update(F.cross_entropy(logits, labels, reduction="none").float())
        metrics["acc"].update((logits.argmax(dim=1) == labels).float())
        # Once an epoch will do: what Lightning logs at its end is then computed from the metric. A log takes it 0.3 ms.
        if metrics.prefix not in self._logged:
            self._logged.add(metrics.prefix)
            for name, metric in metrics.items():
                self.log(name, metric, on_step=False, on_epoch=True, prog_bar=name in ("train/loss", "val/acc"))


def _metrics(stage: str, *names: str) -> MetricCollection:
    """Means over samples, so that a sample counts once wherever it is; a NaN is shown, not left out."""
    means: dict[str, Metric | MetricCollection] = {name: MeanMetric(nan_strategy="disable") for name in names}
    return MetricCollection(means, prefix=f"{stage}/", compute_groups=False)
