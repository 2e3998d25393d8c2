"""Schedule of the momentum of running statistics."""

import math
from typing import Any, Literal

import lightning.pytorch as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.surgery.momentum import layers_with_momentum, set_momentum
from syncbn.policy.freeze import has_moving_statistics
from syncbn.training.callbacks.momentum_schedule_options import MomentumScheduleOptions as Options


class MomentumSchedule(L.Callback):
    """Changes the momentum of every layer with running statistics from `start` to `end`, then keeps it.

    At optimizer step s of S = `fraction` of all steps, with t = min(s / S, 1):

        linear: start + (end - start)·t        cosine: end + (start - end)·(1 + cos πt) / 2

    A large momentum early follows fast-changing weights; a small one late averages more batches of nearly constant
    weights. The value depends only on the step, so a resumed run continues correctly. Logged as `norm/momentum`.
    Without a layer whose statistics may change there is nothing to do, which a warning says.

    Args:
        start: first momentum, in [0, 1], in torch's convention (see `syncbn.norm.core.momentum`).
        end: last momentum.
        shape: "linear" or "cosine".
        fraction: share of the training's steps until `end` is reached, in (0, 1].

    Raises:
        ValueError: an argument out of range.
        MisconfigurationException: in `fit`, a training without a known number of steps.
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
        self._acts = True

    def momentum_at(self, part: float) -> float:
        """Momentum after the share `part` of the schedule."""
        t = min(part, 1.0)
        if self.shape == "linear":
            return self.start + (self.end - self.start) * t
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * t)) / 2

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Determine the length of the training."""
        steps = trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise MisconfigurationException(
                "a momentum schedule needs an end: set trainer.max_epochs or trainer.max_steps"
            )
        self._steps = max(self.fraction * steps, 1)
        self._acts = any(has_moving_statistics(layer) for _, layer in layers_with_momentum(pl_module))
        if not self._acts:
            rank_zero_warn("MomentumSchedule does nothing: no layer has a momentum and running statistics that change")

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Set the momentum of this step."""
        if not self._acts:
            return
        momentum = self.momentum_at(trainer.global_step / self._steps)
        set_momentum(pl_module, momentum)
        pl_module.log("norm/momentum", momentum)
