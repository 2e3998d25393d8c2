"""Layers that use the weights of the preceding layer, and the layers that they can be attached to."""

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
    """A layer that uses or changes the weights of the preceding layer.

    An optional method `without_feeder(reason)` makes it work without one.
    """

    @property
    def is_attached(self) -> bool:
        """Whether it has a feeder or doesn't need one."""

    def attach(self, feeder: nn.Module) -> None:
        """Attach to `feeder`."""

    def detach(self) -> None:
        """Detach, and restore the feeder."""


def check_feeder(feeder: nn.Module, num_features: int) -> None:
    """Raise `TypeError` unless it is a convolution or linear layer, `ValueError` for a different number of channels."""
    if not isinstance(feeder, FEEDERS):
        allowed = ", ".join(cls.__name__ for cls in FEEDERS)
        raise TypeError(f"attach takes the layer that feeds this one ({allowed}), got {type(feeder).__name__}")
    channels = feeder.out_features if isinstance(feeder, nn.Linear) else feeder.out_channels
    if channels != num_features:
        raise ValueError(f"this layer normalizes {num_features} channels, but {feeder} returns {channels}")
