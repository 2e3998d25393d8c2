"""Layers that act on the weights of the layer before them, and the layers they can act on."""

from typing import Protocol, runtime_checkable

from torch import nn

FEEDERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@runtime_checkable
class Attachable(Protocol):
    """A layer that acts on the weights of the one before it.

    It may have a method `without_feeder(reason)` too, by which it does without.
    """

    @property
    def is_attached(self) -> bool:
        """Whether it needs to be told nothing more."""

    def attach(self, feeder: nn.Module) -> None:
        """Act on `feeder` from now on."""

    def detach(self) -> None:
        """Leave the feeder as it was."""


def check_feeder(feeder: nn.Module, num_features: int) -> None:
    """Raise `TypeError` for what is neither a convolution nor linear, `ValueError` for another number of channels."""
    if not isinstance(feeder, FEEDERS):
        allowed = ", ".join(cls.__name__ for cls in FEEDERS)
        raise TypeError(f"attach takes the layer that feeds this one ({allowed}), got {type(feeder).__name__}")
    channels = feeder.out_features if isinstance(feeder, nn.Linear) else feeder.out_channels
    if channels != num_features:
        raise ValueError(f"this layer normalizes {num_features} channels, but {feeder} returns {channels}")
