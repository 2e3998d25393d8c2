"""Trainings in which rank 1 differs from rank 0 in one respect."""

from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import syncbn
from syncbn.training import RanksAgree, RanksDisagree
from tests.training import fits


def net(kind: str) -> nn.Module:
    torch.manual_seed(0)
    odd = dist.get_rank() == 1
    channels = 5 if odd and kind == "channels" else 4
    layers: list[nn.Module] = [nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels, affine=False)]
    if odd and kind == "layers":
        layers.append(nn.BatchNorm2d(channels, affine=False))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(36 * channels, 10))
    return model if kind == "unsynchronized" else syncbn.convert(model, "sync")


class Module(L.LightningModule):
    """Rank 1 changes one value after its second batch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.net = kind, net(kind)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1 and dist.get_rank() == 1:
            tensor = {"parameter": self.net[0].weight, "buffer": self.net[1].running_var}.get(self.kind)
            if tensor is not None:
                tensor.data.view(-1)[0] += 1e-4

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(kind: str, every_n_steps: int | None) -> str:
    """Fit, and return the run's message."""
    settings = {"norm": {"name": "batch" if kind == "settings" and dist.get_rank() == 1 else "sync"}}
    with fits.launched():
        run = fits.trainer(max_epochs=1, callbacks=[RanksAgree(settings, every_n_steps)])
        try:
            module = Module(kind)
            torch.manual_seed(dist.get_rank())
            batches = [(torch.randn(4, 1, 8, 8), torch.arange(4))] * 3
            run.fit(module, DataLoader(batches, batch_size=None))  # a list is a data set
        except RanksDisagree as error:
            return str(error)
    return "agreed"
