"""Callbacks of a trainer, by class."""

from typing import TypeVar

import lightning.pytorch as L
from lightning.pytorch import callbacks

from syncbn.training.connected import connected

Kind = TypeVar("Kind", bound=L.Callback)


def callbacks_of(trainer: L.Trainer, kind: type[Kind]) -> list[Kind]:
    """Get the trainer's callbacks of a class, in order."""
    return [callback for callback in connected(trainer).callbacks if isinstance(callback, kind)]


def averages_weights(trainer: L.Trainer) -> bool:
    """Whether a callback averages the weights, which Lightning does since 2.6."""
    kind = getattr(callbacks, "WeightAveraging", None)
    return kind is not None and bool(callbacks_of(trainer, kind))
