"""The momentum of running statistics, from one value to another in the course of a training."""

import math
from typing import Any, Literal

import lightning.pytorch as L

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.surgery.momentum import set_momentum
from syncbn.training.callbacks.momentum_schedule_options import MomentumScheduleOptions as Options


class MomentumSchedule(L.Callback):
    """Moves the momentum of every layer with running statistics from `start` to `end`, then leaves it there.

    At optimizer step s of S = `fraction` of all steps, with t = min(s / S, 1):

        linear: start + (end - start)·t        cosine: end + (start - end)·(1 + cos πt) / 2

    A large momentum early follows weights that change fast, a small one late averages more batches of weights that
    hardly do. The value depends on the step alone, so a resumed run goes on with the right one. Logged as
    `norm/momentum`.

    Args:
        start: the first momentum, in [0, 1], as torch counts it (see `syncbn.norm.core.momentum`).
        end: the last.
        shape: "linear" or "cosine".
        fraction: part of the training's steps in which it gets there, in (0, 1].

    Raises:
        ValueError: an argument out of its range; in `fit`, a training without a known number of steps, or a network
            without running statistics.
    """

    def __init__(
        self,
        start: float = Options.start,
        end: float = Options.end,
        shape: Literal["linear", "cosine"] = Options.shape,
        fraction: float = Options.fraction,
    ) -> None:
        check_arguments(Options, locals())
        self.start, self.end, self.shape, self.fraction = start, end, shape, fraction
        self._steps = 1.0

    def momentum_at(self, part: float) -> float:
        """The momentum where `part` of the way is done."""
        t = min(part, 1.0)
        if self.shape == "linear":
            return self.start + (self.end - self.start) * t
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * t)) / 2

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find out how long the training is."""
        steps = trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError("a momentum schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        self._steps = max(self.fraction * steps, 1)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Set the momentum of this step."""
        momentum = self.momentum_at(trainer.global_step / self._steps)
        set_momentum(pl_module, momentum)
        pl_module.log("norm/momentum", momentum)
