"""LightningModule for classification."""

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
from syncbn.training.schedule import takes_total_steps
from syncbn.training.tasks.classification_options import ClassificationOptions as Options


class ClassificationTask(L.LightningModule):
    """Trains `net` to classify, by cross-entropy over the samples of all ranks.

    A rank's loss is weighted by its share of the samples, so that DDP's average of gradients is that of the mean over
    the global batch, even if ranks' batches are unequal or empty. Metrics sum over ranks and count each sample once.
    Logged per epoch: train/loss, train/acc, val/loss, val/acc, test/loss, test/acc. Losses are the plain cross-entropy,
    and so comparable; with label smoothing, the training objective is logged as train/objective.

    Args:
        net: network from images (N, C, H, W) to logits (N, num_classes).
        optimizer: function from parameter groups to an optimizer, for example `partial(torch.optim.SGD, lr=0.1,
            weight_decay=1e-4)`; biases and norm parameters get no weight decay.
        scheduler: function from (optimizer, total_steps=...) to a schedule, stepped after each optimizer step, for
            example `partial(cosine_with_warmup, warmup_fraction=0.1)`. One that takes no total_steps, as `StepLR`, is
            stepped after each epoch, `ReduceLROnPlateau` by val/loss. None for a constant learning rate.
        num_classes: number of logits.
        label_smoothing: share of the training target that is spread over all classes, in [0, 1).
        class_names: names for tables and plots; 0, 1, 2, ... when None.

    Raises:
        ValueError: num_classes below 2, smoothing out of range, or different numbers of names and classes.
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
        self._logged: set[str | None] = set()  # prefixes of metrics logged in the current epochs

    @property
    def monitored_names(self) -> list[str]:
        """Metrics that a fit logs, for callbacks to monitor."""
        return [str(name) for metrics in (self.train_metrics, self.val_metrics) for name in metrics]

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, num_classes) of images (N, C, H, W)."""
        return self.net(images)

    def on_fit_start(self) -> None:
        """Reset logging, since the trainer may be a new one."""
        self._logged.clear()

    def on_train_epoch_start(self) -> None:
        """Reset logging of training metrics."""
        self._logged.discard("train/")

    def on_validation_epoch_start(self) -> None:
        """Reset logging of validation metrics."""
        self._logged.discard("val/")

    def on_test_epoch_start(self) -> None:
        """Reset logging of test metrics."""
        self._logged.discard("test/")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute this rank's part of the mean loss over the samples of all ranks."""
        images, labels = batch
        logits = self(images)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"{type(self.net).__name__} returns a {type(logits).__name__} in training, and {type(self).__name__} "
                "takes logits (N, classes): let it return these alone (aux_logits=False, say), or write a task of your "
                "own (task._target_)"
            )
        losses = _cross_entropy(logits, labels, self.label_smoothing)
        plain = losses
        if self.label_smoothing:
            self.train_metrics["objective"].update(losses.detach().float())
            plain = _cross_entropy(logits.detach(), labels)
        self._update(self.train_metrics, plain, logits, labels)
        return mean_over_ranks(losses)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Add the batch to val/loss and val/acc; returns the logits, for callbacks that show predictions."""
        images, labels = batch
        logits = self(images)
        self._update(self.val_metrics, _cross_entropy(logits, labels), logits, labels)
        return logits

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Add the batch to test/loss, test/acc and the confusion matrix; returns the logits."""
        images, labels = batch
        logits = self(images)
        self._update(self.test_metrics, _cross_entropy(logits, labels), logits, labels)
        if len(labels):  # torchmetrics can't reshape an empty batch, which may occur at the end of the data
            self.test_confusion.update(logits, labels)
        return logits

    def on_test_epoch_end(self) -> None:
        """Compute `confusion_matrix` (num_classes, num_classes) over all ranks: rows true, columns predicted."""
        self.confusion_matrix = self.test_confusion.compute().cpu()
        self.test_confusion.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer, with and without weight decay, and the schedule stepped with it."""
        optimizer = self.optimizer(parameter_groups(self.net))
        if self.scheduler is None:
            return optimizer
        if not takes_total_steps(self.scheduler):
            schedule = {"scheduler": self.scheduler(optimizer), "interval": "epoch", "monitor": "val/loss"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}  # type: ignore[return-value]
        total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.scheduler(optimizer, total_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _update(self, metrics: MetricCollection, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        metrics["loss"].update(losses.detach().float())
        metrics["acc"].update((logits.argmax(dim=1) == labels).float())
        # Once per epoch is enough, since Lightning logs the metric's value at its end. Each log takes 0.3 ms.
        if metrics.prefix not in self._logged:
            self._logged.add(metrics.prefix)
            for name, metric in metrics.items():
                self.log(name, metric, on_step=False, on_epoch=True, prog_bar=name in ("train/loss", "val/acc"))


_NONE = -(2**31)


def _cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each sample. No label is left out: torch's -100 would count as a loss of 0, and as an error."""
    try:
        return F.cross_entropy(logits, labels, reduction="none", ignore_index=_NONE, label_smoothing=label_smoothing)
    except IndexError:  # on a GPU, a failed assertion
        raise ValueError(
            f"labels must be 0 to {logits.shape[1] - 1}, since the network returns {logits.shape[1]} logits, got "
            f"{int(labels.min())} to {int(labels.max())}: leave other samples out of the data, or write a task of your "
            "own (task._target_)"
        ) from None


def _metrics(stage: str, *names: str) -> MetricCollection:
    """Metrics as means over samples, so that each counts once on any rank; NaN is included."""
    means: dict[str, Metric | MetricCollection] = {name: MeanMetric(nan_strategy="disable") for name in names}
    return MetricCollection(means, prefix=f"{stage}/", compute_groups=False)
