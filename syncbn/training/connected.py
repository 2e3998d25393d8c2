"""Attributes of a trainer that Lightning's connectors set, where a type checker doesn't see them."""

from typing import Protocol, cast

import lightning.pytorch as L
from lightning.pytorch.profilers import Profiler


class Connected(Protocol):
    """A trainer with these attributes."""

    callbacks: list[L.Callback]
    datamodule: L.LightningDataModule | None
    log_every_n_steps: int
    overfit_batches: float
    profiler: Profiler


def connected(trainer: L.Trainer) -> Connected:
    """The trainer itself, with the types of these attributes."""
    return cast(Connected, trainer)
