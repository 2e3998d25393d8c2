"""Trainings in one process or on every rank of a pool, run by `Ranks.run`."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import syncbn
from syncbn.data import DigitsDataModule
from syncbn.models.resnet import resnet18
from syncbn.training import AtomicCheckpointIO, ClassificationTask, SyncBatchNormPlugin, cosine_with_warmup, ddp

averaging = pytest.mark.skipif(
    not hasattr(L.callbacks, "WeightAveraging"), reason="Lightning averages weights since 2.6"
)


@contextmanager
def launched() -> Iterator[None]:
    """Set torchrun's variables for Lightning inside a rank of a pool."""
    before = dict(os.environ)
    if dist.is_initialized():
        rank, world = str(dist.get_rank()), str(dist.get_world_size())
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0", "WORLD_SIZE": world}
        os.environ |= {"LOCAL_WORLD_SIZE": world, "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "tests"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # unused: the group exists already
    try:
        with warnings.catch_warnings():
            # Lightning's own use of torch's pytree, and advice about deliberate settings.
            warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated")
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            warnings.filterwarnings("ignore", category=L.utilities.warnings.PossibleUserWarning)
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def trainer(**options: Any) -> L.Trainer:
    """A quiet trainer for this process or its pool."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    plugins = [AtomicCheckpointIO(), *options.pop("plugins", [])]
    strategy = options.pop("strategy", ddp() if world > 1 else "auto")
    return L.Trainer(accelerator="cpu", devices=world, strategy=strategy, plugins=plugins, **(quiet | options))


def digits(train: int = 1079, test: int = 359, **options: Any) -> DigitsDataModule:
    """The digits with only their first `train` and `test` samples."""
    data = DigitsDataModule(**options)
    data.train_indices = data.train_indices[:train]
    data.val_indices = data.test_indices = data.test_indices[:test]
    return data


def task(norm: str = "sync", width: int = 4, lr: float = 0.02, **options: Any) -> ClassificationTask:
    """A small network, the same on every rank, in float32 or in the trainer's precision."""
    torch.manual_seed(0)
    net = resnet18(norm=norm, num_classes=10, in_channels=1, stem="cifar", width=width)
    optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=1e-3)
    return ClassificationTask(net, optimizer, partial(cosine_with_warmup, warmup_fraction=0.2), **options)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def shallow_net() -> nn.Module:
    """A network with 36 values per image and channel, which can train on one image; a deep ResNet has one value."""
    torch.manual_seed(0)
    pool = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), syncbn.SyncBatchNorm(6), pool, nn.Linear(24, 10))


def fit(batch_size: int, train: int, shallow: bool = False, **options: Any) -> dict[str, Any]:
    """Fit for two epochs; returns the network's state, the logged metrics and the number of steps."""
    with launched():
        module, run = task(), trainer(max_epochs=2, **options)
        if shallow:
            module.net = shallow_net()
        run.fit(module, digits(train, batch_size=batch_size))
        metrics = {name: value.item() for name, value in run.callback_metrics.items()}
        return {"net": state(module.net), "metrics": metrics, "steps": run.global_step}


def evaluate(batch_size: int, test: int) -> dict[str, Any]:
    """Test an untrained network."""
    with launched():
        module, run = task().double(), trainer(precision="64-true")
        metrics = run.test(module, digits(test=test, eval_batch_size=batch_size), verbose=False)[0]
        return {"metrics": metrics, "confusion": module.confusion_matrix}


class UsersModule(L.LightningModule):
    """A LightningModule independent of this package."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(6 * 36, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
        self.classes_in_training: list[str] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.classes_in_training = [type(m).__name__ for m in self.modules() if "BatchNorm" in type(m).__name__]
        return F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/loss", F.cross_entropy(self.head(self.backbone(batch[0])), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit_with_plugin(batch_size: int, plugin: Callable[[], SyncBatchNormPlugin] | None, folder: Path) -> dict[str, Any]:
    """Fit a user's module on full batches, with the plugin if there are ranks."""
    with launched():
        module = UsersModule()
        run = trainer(max_epochs=1, precision="64-true", plugins=[plugin()] if plugin else [])
        run.fit(module, digits(64, batch_size=batch_size))
        run.save_checkpoint(folder / "last.ckpt")
        classes = [type(m).__name__ for m in module.modules() if "BatchNorm" in type(m).__name__]
        return {"state": state(module), "in_training": module.classes_in_training, "after": classes}
