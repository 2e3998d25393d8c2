"""Trainings on ranks of which one has fewer batches than the other, and the same training by hand in one process."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanMetric

import syncbn
from syncbn.training import UnequalBatches, ddp
from tests.training import fits

EPOCHS, SIZES = 2, (3, 2)  # epochs; samples in a batch of each rank


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )
    return layers.double()


def batches(rank: int, count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    size = SIZES[rank]
    return [
        (torch.randn(size, 1, 8, 8, generator=generator, dtype=torch.float64), torch.arange(size) + i)
        for i in range(count)
    ]


class Stream(IterableDataset[Any]):
    """Batches of unknown number."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = syncbn.convert(net(), "sync")
        self.loss = MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")
        self.loss.update(losses.detach())
        self.log("loss", self.loss, on_step=False, on_epoch=True)
        return syncbn.mean_over_ranks(losses)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(counts: tuple[int, int], policy: Any, known: bool) -> dict[str, Any]:
    """Fit; returns the network, the last epoch's loss and the number of steps, or the run's message."""
    own = batches(dist.get_rank(), counts[dist.get_rank()])
    loader: Any = DataLoader(own if known else Stream(own), batch_size=None)
    with fits.launched():
        run = fits.trainer(max_epochs=EPOCHS, strategy=ddp(unequal_batches=policy), precision="64-true")
        module = Module()
        try:
            run.fit(module, loader)
        except UnequalBatches as error:
            return {"error": str(error)}
        return {"net": module.net.state_dict(), "loss": run.callback_metrics["loss"].item(), "steps": run.global_step}


def by_hand(counts: tuple[int, int]) -> tuple[nn.Module, float]:
    """Train in a plain loop of one process over the ranks' combined batches."""
    network = net()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        seen: list[Tensor] = []
        for parts in zip_longest(*(batches(rank, count) for rank, count in enumerate(counts))):
            images, labels = (torch.cat(tensors) for tensors in zip(*(part for part in parts if part), strict=True))
            losses = F.cross_entropy(network(images), labels, reduction="none")
            seen.append(losses.detach())
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
    return network, torch.cat(seen).mean().item()
