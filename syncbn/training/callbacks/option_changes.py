"""Options that are others than those of the run that a checkpoint is of."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as L


class ChangedOptions(L.Callback):
    """Gives optimizers, schedules and callbacks what they are told now, after Lightning has restored what they were.

    The states that a checkpoint keeps of them have their options, too: a learning rate, or the patience of early
    stopping, would stay what it was, without a word. Another learning rate keeps the place in the schedule, and the
    ratio of groups of parameters with one of their own.

    Args:
        optimizer: options by name, as (before, now).
        scheduler: options by name.
        callbacks: a callback, and its options by name, each.
    """

    def __init__(
        self,
        optimizer: Mapping[str, tuple[Any, Any]],
        scheduler: Mapping[str, Any],
        callbacks: Sequence[tuple[L.Callback, Mapping[str, Any]]],
    ) -> None:
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.callbacks = callbacks

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set them."""
        for key, (before, now) in self.optimizer.items():
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    if key == "lr" and before:
                        _scale(group, now / before)
                    elif group.get(key) == before:
                        group[key] = now
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            before, now = self.optimizer.get("lr", (None, None))
            if before and hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [rate * now / before for rate in scheduler.base_lrs]
            _set(scheduler, self.scheduler)
        for callback, options in self.callbacks:
            _set(callback, options)


def _scale(group: dict[str, Any], ratio: float) -> None:
    for key in ("lr", "initial_lr"):
        if key in group:
            group[key] = group[key] * ratio


def _set(owner: Any, options: Mapping[str, Any]) -> None:
    """Set those that the object keeps under their names; others it has taken up when it was made."""
    for key, value in options.items():
        if key in vars(owner):
            setattr(owner, key, value)
