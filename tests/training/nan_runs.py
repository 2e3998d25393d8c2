"""Trainings in which one rank's data is NaN in some batches, and the same training by hand."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torchmetrics import MeanMetric

import syncbn
from syncbn.training import ExactResume, GANTask, NanPolicy, NonFiniteLoss
from tests.training import fits, gans

BATCHES, EPOCHS, SIZE = 6, 2, 8  # of all ranks together
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": partial(torch.optim.AdamW, lr=0.01),
}


def net(norm: str = "sync") -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Flatten(),
    )
    options = {"window": 3} if norm == "cross_iteration" else {}
    return syncbn.convert(nn.Sequential(*layers, nn.Linear(64, 10)), norm, **options).double()


def batch(number: int) -> tuple[Tensor, Tensor]:
    """The n-th batch of the training, over all ranks."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(SIZE, 1, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(10, (SIZE,), generator=generator)


@contextmanager
def launched() -> Iterator[None]:
    with fits.launched():
        warnings.filterwarnings("ignore", message="the loss isn't finite .* \\(nan_policy=(skip|rewind)\\)")
        yield


class Data:
    """This rank's part of each batch; on the last rank, NaN in the batches `bad`, counted over epochs."""

    def __init__(self, bad: Sequence[int]) -> None:
        self.bad, self.epoch = bad, 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Any:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        start, self.epoch = self.epoch * BATCHES, self.epoch + 1
        for number in range(start, start + BATCHES):
            images, labels = (part.chunk(world)[rank].clone() for part in batch(number))
            if number in self.bad and rank == world - 1:
                images[0, 0, 3, 3] = torch.nan
            yield images, labels


class Module(L.LightningModule):
    def __init__(self, norm: str, optimizer: str) -> None:
        super().__init__()
        self.net, self.optimizer = net(norm), optimizer
        self.loss = MeanMetric(nan_strategy="disable")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")
        self.loss.update(losses.detach())
        self.log("train/loss", self.loss, on_step=False, on_epoch=True)
        return syncbn.mean_over_ranks(losses)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer](self.parameters())


def fit(
    folder: Path,
    policy: str,
    bad: Sequence[int],
    norm: str = "sync",
    optimizer: str = "sgd",
    patience: int = 10,
    **options: Any,
) -> dict[str, Any]:
    """Fit; returns the network and the last loss, or the message of a stop."""
    with launched():
        callbacks = [
            NanPolicy(policy, folder / "last.ckpt", patience),
            ExactResume(),
            ModelCheckpoint(folder, "last", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True),
        ]
        run = fits.trainer(
            max_epochs=EPOCHS, callbacks=callbacks, enable_checkpointing=True, precision="64-true", **options
        )
        module = Module(norm, optimizer)
        try:
            run.fit(module, Data(bad))
        except NonFiniteLoss as error:
            return {"error": str(error)}
        return {"net": module.net.state_dict(), "loss": run.callback_metrics["train/loss"].item()}


def by_hand(numbers: Sequence[Sequence[int]], optimizer: str = "sgd", norm: str = "batch") -> tuple[nn.Module, Tensor]:
    """Train in a plain loop over steps' batches; returns the network and the losses of each batch."""
    network = net(norm)
    steps = OPTIMIZERS[optimizer](network.parameters())
    losses = []
    for step in numbers:
        steps.zero_grad()
        for number in step:
            images, labels = batch(number)
            loss = F.cross_entropy(network(images), labels)
            (loss / len(step)).backward()
            losses.append(loss.detach())
        steps.step()
    return network, torch.stack(losses)


def gan(folder: Path, bad: Sequence[int]) -> list[dict[str, Tensor]]:
    """Networks of a GAN after each batch, if the images of some are NaN."""
    states: list[dict[str, Tensor]] = []

    class States(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            states.append(fits.state(pl_module.net))

    with launched():
        run = fits.trainer(max_epochs=1, precision="64-true", callbacks=[NanPolicy("skip"), States()])
        run.fit(GANTask(gans.net().double(), gans.ADAM), Data(bad))
    return states
