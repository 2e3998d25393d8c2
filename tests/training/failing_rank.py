"""A training in which one rank raises, as a script: `failing_rank.py {popen,spawn} RANK {start,step,hang}`."""

import sys
import time
from functools import partial

import lightning.pytorch as L
import torch

from syncbn.data import DigitsDataModule
from syncbn.models.resnet import resnet18
from syncbn.training import ClassificationTask, ddp


class FailingTask(ClassificationTask):
    """Raises on one rank, before the first step or at the third; with "hang", the other rank sleeps."""

    failing_rank: int
    where: str

    def configure_model(self) -> None:
        if self.where == "start":
            self.fail()

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if self.where != "start" and batch_idx == 2:
            self.fail()
            if self.where == "hang":
                time.sleep(600)

    def fail(self) -> None:
        if self.global_rank == self.failing_rank:
            raise ValueError(f"at {time.time():.1f} rank {self.failing_rank} found something wrong")


def main(start_method: str, rank: str, where: str) -> None:
    net = resnet18(norm="sync", num_classes=10, in_channels=1, stem="cifar", width=4)
    task = FailingTask(net, partial(torch.optim.SGD, lr=0.01))
    task.failing_rank, task.where = int(rank), where
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ddp(start_method=start_method),
        max_epochs=50,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, DigitsDataModule())


if __name__ == "__main__":
    main(*sys.argv[1:])
