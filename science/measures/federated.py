"""Accuracy of networks that clients with unlike data train together, each on its own data."""

import statistics
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from science.measures.evaluation import BATCH, accuracy, whole
from science.measures.training import fit
from science.runs import Setting
from syncbn.data import Corruptions
from syncbn.norm.core.options import suggest

# A client's images, by its rank: as they are, paler and darker, noisy, blurred, negative, turned.
DOMAINS: tuple[dict[str, float], ...] = (
    {},
    {"contrast": 0.4, "brightness": 0.5},
    {"noise": 0.5},
    {"inversion": 1.0},
    {"blur": 1.5},
    {"contrast": 0.3, "brightness": -0.6},
    {"rotation": 90.0},
    {"inversion": 0.8, "noise": 0.2},
)


class KeepLocal(Callback):
    """Leave γ and β of norms out of DDP: each rank trains its own (FedBN)."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.world_size > 1:
            names = [
                f"{path}.{name}"
                for path, layer in pl_module.named_modules()
                if isinstance(getattr(layer, "running_mean", None), Tensor)
                for name, _ in layer.named_parameters(recurse=False)
            ]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(pl_module, names)


class OwnDomain(Callback):
    """Change each rank's images its own way; the ranks' options, which must agree, don't say so."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.corruptions = Corruptions(DOMAINS[trainer.global_rank % len(DOMAINS)], len(data.labels))


def federated(setting: Setting) -> dict[str, float]:
    """Measure networks of clients, one on each rank, whose gradients are averaged at every step.

    With the option `clients` = "domains" a client's images are those of its domain; with "classes" it has only its own
    classes, and `data.shard_by_class` must be true. With `local`, γ and β aren't averaged (FedBN).

    - `own`: test accuracy of a client's network on the client's kind of images, mean over clients.
    - `worst`: the same of the worst client.
    - `plain`: test accuracy of a client's network on all plain test images, mean over clients.

    Raises:
        ValueError: an unknown kind of clients, or gradients that are clipped: where parameters are local, ranks would
            clip those that they share by different norms.
    """
    clients = setting.options["clients"]
    if clients not in ("domains", "classes"):
        raise ValueError(f"unknown clients {clients!r}; {suggest(clients, ('domains', 'classes'))}")
    if setting.config.trainer.gradient_clip_val is not None:
        raise ValueError("clients that share a part of their parameters need trainer.gradient_clip_val=null")
    rank, size = setting.world.rank, setting.world.world_size
    callbacks: list[Callback] = [KeepLocal()] if setting.options.get("local") else []
    fitted = fit(setting.config, setting.world, [*callbacks, OwnDomain()] if clients == "domains" else callbacks)
    limit = setting.config.trainer.get("limit_test_batches")
    count = limit * BATCH if isinstance(limit, int) else None
    net, data = fitted.net.eval(), fitted.data
    images, labels = whole(data, "test", count)
    mine = torch.ones(len(labels), dtype=torch.bool) if clients == "domains" else labels % size == rank
    data.corruptions = Corruptions({}, len(data.labels))
    own, plain = _accuracy(net, images[mine], labels[mine]), _accuracy(net, *whole(data, "test", count))
    every: list[Any] = [(own, plain)] * size
    if dist.is_initialized():
        dist.all_gather_object(every, (own, plain))
    owns, plains = zip(*every, strict=True)
    return {"own": statistics.fmean(owns), "worst": min(owns), "plain": statistics.fmean(plains)}


def _accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    return accuracy(net, zip(images.split(BATCH), labels.split(BATCH), strict=True))
