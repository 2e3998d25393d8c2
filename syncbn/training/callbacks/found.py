"""Callbacks of a trainer, by class."""

from typing import TypeVar

import lightning.pytorch as L

Kind = TypeVar("Kind", bound=L.Callback)


def callbacks_of(trainer: L.Trainer, kind: type[Kind]) -> list[Kind]:
    """Get the trainer's callbacks of a class, in order."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a Lightning connector
    return [callback for callback in callbacks if isinstance(callback, kind)]
