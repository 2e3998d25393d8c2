"""Applying options that differ from those of a checkpoint's run."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as L


class ChangedOptions(L.Callback):
    """Sets changed options of optimizers, schedules and callbacks, after Lightning has restored the old ones.

    Their states in a checkpoint include options, so a new learning rate, or patience of early stopping, would silently
    be ignored. A new learning rate keeps the position in the schedule, and the ratios between parameter groups.

    Args:
        optimizer: options by name, as (before, now).
        scheduler: options by name.
        callbacks: pairs of a callback and its options by name.
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
        """Set the options."""
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
    """Set the options that are attributes of the object; it got the others when it was created."""
    for key, value in options.items():
        if key in vars(owner):
            setattr(owner, key, value)
