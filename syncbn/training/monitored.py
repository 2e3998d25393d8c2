"""Scores that callbacks and schedulers monitor, as last logged, which Lightning's checkpoints lack."""

import lightning.pytorch as L
from torch import Tensor


def save(trainer: L.Trainer) -> dict[str, Tensor]:
    """Save the last values by name: between two validations they are those of the first."""
    monitors = {getattr(callback, "monitor", None) for callback in trainer.callbacks}  # type: ignore[attr-defined]
    monitors |= {config.monitor for config in trainer.lr_scheduler_configs}
    last = trainer._logger_connector._callback_metrics  # the property would compute the current epoch's
    return {name: value.detach().cpu() for name, value in last.items() if name in monitors}


def load(trainer: L.Trainer, saved: dict[str, Tensor]) -> None:
    """Restore the result of `save`, so that a save or a stop before the next validation goes by the same values."""
    device = trainer.strategy.root_device
    trainer._logger_connector._callback_metrics.update({name: value.to(device) for name, value in saved.items()})
