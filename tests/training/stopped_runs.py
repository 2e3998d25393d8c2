"""Trainings that a signal stops and that resume, in one process or as a rank of a pool."""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import nn

import syncbn
from syncbn.launch import stop
from syncbn.training import (
    ClassificationTask,
    ExactResume,
    GANTask,
    Preemption,
    RecalibrateNorm,
    SampleGrids,
    SyncGroup,
    cosine_with_warmup,
)
from tests.training import fits, gans


class Rows(Logger):
    """Records logged values and their steps."""

    name, version, experiment = "rows", "0", None

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


class SignalAt(L.Callback):
    """Sends this process a signal in the middle of its n-th batch, counted from the start, validation included."""

    def __init__(self, batch: int | None, rank: int) -> None:
        self.batch, self.rank, self.seen = batch, rank, 0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.seen == self.batch and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)
            while not stop.requested():
                time.sleep(0.001)
        self.seen += 1

    on_validation_batch_start = on_train_batch_start


class NoisyTask(ClassificationTask):
    """Draws from every generator in training and validation, and logs plain numbers, too."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("noise", torch.randn(()).double() + random.random(), on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("val/noise", torch.randn(()), sync_dist=True)
        np.random.rand()  # noqa: NPY002
        return super().validation_step(batch, batch_idx)


def task(kind: str) -> NoisyTask:
    norm = "sync" if kind == "alone" else kind
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # the global generator is what is to be restored
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(6 * 36, 10)
    )
    options = {"window": 3} if norm == "cross_iteration" else {}
    net = syncbn.convert(net, norm, **options)
    return NoisyTask(net, partial(torch.optim.SGD, lr=0.05, momentum=0.9), partial(cosine_with_warmup))


def gan() -> GANTask:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    return GANTask(gans.net(), gans.ADAM, partial(cosine_with_warmup))


def fit(
    folder: Path,
    kind: str,
    stop_at: int | None,
    *,
    resume: bool,
    ema: bool = False,
    recalibrate: bool = False,
    **options: Any,
) -> Any:
    """Fit for two epochs, of 6 batches on one rank or 3 on two; returns the final state and the logs.

    None if a signal stopped it.
    """
    with fits.launched():
        module, rows = gan() if kind == "gan" else task(kind), Rows()
        monitor = "val/discriminator_loss" if kind == "gan" else "val/loss"
        callbacks = [
            SignalAt(stop_at, rank=int(os.environ.get("WORLD_SIZE", "1")) - 1),
            EarlyStopping(monitor, patience=5),
            ModelCheckpoint(folder, "best", monitor=monitor, enable_version_counter=False),
            ExactResume(),
            Preemption(folder / "last.ckpt"),
            *([L.callbacks.EMAWeightAveraging(decay=0.9, use_buffers=False)] if ema else []),
            *([RecalibrateNorm(max_batches=2)] if recalibrate else []),
            *([SampleGrids(every_n_epochs=1, rows=2, folder=folder)] if kind == "gan" else []),
            *([SyncGroup(1)] if kind == "alone" else []),
        ]
        run = fits.trainer(
            max_epochs=2, callbacks=callbacks, enable_checkpointing=True, logger=rows, log_every_n_steps=1, **options
        )
        data = fits.digits(train=96, test=40, batch_size=16, eval_batch_size=10)
        try:
            run.fit(module, data, ckpt_path=folder / "last.ckpt" if resume else None)
        except stop.Stopped:
            return None, rows.rows
        state = {
            "module": module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
            "callbacks": {str(c.state_key): c.state_dict() for c in callbacks if isinstance(c, EarlyStopping)},
            "random": (torch.get_rng_state(), torch.randn(3), random.random(), np.random.rand()),  # noqa: NPY002
        }
        return state, rows.rows


def whole_and_resumed(folder: Path, kind: str, stops: list[int], **options: Any) -> list[Any]:
    """The uninterrupted run; and for each place to stop: whether it did, the logs until then, the resumed run."""
    whole = fit(folder / "whole", kind, None, resume=False, **options)
    pieces = []
    for stop_at in stops:
        place = folder / str(stop_at)
        ended, before = fit(place, kind, stop_at, resume=False, **options)
        after = fit(place, kind, None, resume=True, **options) if ended is None else (ended, [])
        pieces.append((ended is None, before, after))
    return [whole, pieces]
