"""Accuracy of networks whose norms synchronize only at some steps or within groups of ranks, and their messages."""

from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

import syncbn
from science.measures.evaluation import accuracy, in_one_process, tested
from science.measures.training import fit
from science.runs import Setting
from syncbn.norm.core import exchange
from syncbn.norm.core.groups import set_process_group

_BATCHES = 16  # of 128 training images, for the statistics at the end


class SyncEvery(Callback):
    """Make norms synchronize at every `every`-th step, within groups of `size` ranks; 0: at none."""

    def __init__(self, every: int, size: int) -> None:
        self.every, self.size = every, size
        self._alone: Any = None
        self._group: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.world_size > 1:
            self._alone = syncbn.sync_group(1)
            self._group = syncbn.sync_group("world" if self.size == trainer.world_size else self.size)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        synchronizes = self.every > 0 and trainer.global_step % self.every == 0
        set_process_group(pl_module, self._group if synchronizes else self._alone)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            set_process_group(pl_module, None)


class Messages:
    """Count the sums over ranks that norms ask for while the context is open; the losses' counts of samples aren't."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Messages":
        self._exchange_for = exchange.exchange_for

        def counted(group: Any, buffer: Tensor) -> Any:
            self.count += buffer.numel() > 2
            return self._exchange_for(group, buffer)

        exchange.exchange_for = counted
        return self

    def __exit__(self, *_: object) -> None:
        exchange.exchange_for = self._exchange_for


def sync_every(setting: Setting) -> dict[str, float]:
    """Measure norms that synchronize at every `every`-th step (0: none) within groups of `size` ranks.

    - `running`: test accuracy of the first rank's network, as a checkpoint holds it.
    - `recalibrated`: the same with statistics of the training images, measured anew.
    - `messages`: sums over ranks per training step.
    """
    every, size = int(setting.options["every"]), int(setting.options.get("size", setting.world.world_size))
    with Messages() as messages:
        fitted = fit(setting.config, setting.world, [SyncEvery(every, min(size, setting.world.world_size))])
    data, net = in_one_process(fitted.data), fitted.net.eval()
    found = {"messages": messages.count / max(fitted.trainer.global_step, 1)}
    alone = syncbn.sync_group(1) if dist.is_initialized() else None
    if setting.world.rank == 0:  # the others would only do the same
        found["running"] = accuracy(net, tested(setting.config, data.test_dataloader()))
        set_process_group(net, alone)
        syncbn.recalibrate(net, data.train_dataloader(), max_batches=_BATCHES, process_group=alone)
        found["recalibrated"] = accuracy(net, tested(setting.config, data.test_dataloader()))
    if dist.is_initialized():
        dist.barrier()
    return found
