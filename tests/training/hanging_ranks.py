"""Trainings in which rank 1 hangs after some batches, each at a different place."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import syncbn
from syncbn.training import Watchdog
from syncbn.training.host_group import host_group
from tests.training import fits

FOREVER_S = 3600.0


class Sleeps(nn.Module):
    """Sleeps on rank 1 in its second forward or backward pass."""

    def __init__(self, where: str, seconds: float) -> None:
        super().__init__()
        self.where, self.seconds = where, seconds
        self.passes = {"forward": 0, "backward": 0}

    def forward(self, x: Tensor) -> Tensor:
        self.sleep("forward")
        if x.requires_grad:
            x.register_hook(lambda _: self.sleep("backward"))
        return x

    def sleep(self, where: str) -> None:
        self.passes[where] += 1
        if where == self.where and self.passes[where] == 2 and dist.get_rank() == 1:
            time.sleep(self.seconds)


class Module(L.LightningModule):
    """A small network with a layer that sleeps between its norms."""

    def __init__(self, where: str, norm: str, seconds: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.where, self.seconds = where, seconds
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            syncbn.norm_layer(norm)(4),
            Sleeps(where, seconds),
            nn.Conv2d(4, 4, 3),
            syncbn.norm_layer(norm)(4),
            nn.Flatten(),
            nn.Linear(64, 10),
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.where == "barrier" and batch_idx == 1 and dist.get_rank() == 0:
            dist.barrier(group=host_group())
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_start(self) -> None:
        host_group()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.where == "stopped" and batch_idx == 1:
            print("reached", flush=True)
            time.sleep(0.1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(where: str, seconds: float) -> Iterator[tuple[Tensor, Tensor]]:
    for number in range(10_000 if where == "stopped" else 6):
        if where == "loader" and number == 4 and dist.get_rank() == 1:
            time.sleep(seconds)
        yield torch.randn(4, 1, 8, 8), torch.arange(4)


class Loader:
    """Batches without a length."""

    def __init__(self, where: str, seconds: float) -> None:
        self.batches = partial(batches, where, seconds)

    def __iter__(self) -> Iterator[Any]:
        return self.batches()


def train(where: str, norm: str, timeout_s: float, slow_timeout_s: float, seconds: float = FOREVER_S) -> None:
    with fits.launched():
        run = fits.trainer(max_epochs=1, callbacks=[Watchdog(timeout_s, slow_timeout_s)])
        run.fit(Module(where, norm, seconds), Loader(where, seconds))
    print("trained")
