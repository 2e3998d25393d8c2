"""Callbacks of a trainer, by class."""

from typing import TypeVar

import lightning.pytorch as L

from syncbn.training.connected import connected

Kind = TypeVar("Kind", bound=L.Callback)


def callbacks_of(trainer: L.Trainer, kind: type[Kind]) -> list[Kind]:
    """Get the trainer's callbacks of a class, in order."""
    return [callback for callback in connected(trainer).callbacks if isinstance(callback, kind)]
