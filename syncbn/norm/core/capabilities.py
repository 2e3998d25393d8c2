"""What a normalization layer can do: it says so itself, and policies, models and training code ask for nothing else.

`Capabilities` lists all of it. Layers of this package, and others that derive from `TrackingNorm`, have it as
attributes; the functions below answer for any module, torch's own layers included. Attributes of the same names are
believed of any other layer, too.
"""

from typing import Any, ClassVar

from torch import nn

from syncbn.norm.core import compat


class Capabilities:
    """The capabilities of a layer, by name, and what is assumed of one that says nothing.

    `normalizes_by_batch` and `is_per_channel` are promises about everything that a class does, which a subclass may
    break by overriding any method. They aren't inherited: a subclass for which they hold says so again.
    """

    normalizes_by_batch: ClassVar[bool] = False
    """In training the output is (x - mean) / sqrt(var + eps) · γ + β by the moments of the current batch alone."""

    is_per_channel: ClassVar[bool] = False
    """All parameters and buffers (C,) have one number for each channel, and no channel's output depends on another."""

    synchronizes: bool = False
    """In training the batches of all ranks of `process_group` are one batch. The layer has that attribute."""

    tracks_batch: bool = True
    """In training the running statistics, where there are any, move towards those of the batch."""

    takes_step: ClassVar[bool] = False
    """`forward(input, step, mask)` is told the time step, and the layer has statistics for each."""

    learns_momentum: ClassVar[bool] = False
    """The weight of the batch in the running statistics is a parameter; the attribute `momentum` isn't used."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for promise in ("normalizes_by_batch", "is_per_channel"):
            if promise not in cls.__dict__:
                setattr(cls, promise, False)

    def clear_window(self) -> None:
        """Forget what is kept of earlier batches beside the running statistics, such as after weights were replaced."""


def normalizes_by_batch(module: nn.Module) -> bool:
    """See `Capabilities`. Other packages' batch norms do, as far as is known of them."""
    return _says(module, "normalizes_by_batch", isinstance(module, compat.BatchNormBase))


def is_per_channel(module: nn.Module) -> bool:
    """See `Capabilities`. Other packages' batch norms are, as far as is known of them."""
    return _says(module, "is_per_channel", isinstance(module, compat.BatchNormBase))


def synchronizes(module: nn.Module) -> bool:
    """See `Capabilities`; of torch's layers, `nn.SyncBatchNorm`."""
    return _says(module, "synchronizes", isinstance(module, nn.SyncBatchNorm))


def tracks_batch(module: nn.Module) -> bool:
    """See `Capabilities`; of other packages' layers, those with a momentum. False where there is nothing to move."""
    has_statistics = getattr(module, "running_mean", None) is not None
    return has_statistics and _says(module, "tracks_batch", hasattr(module, "momentum"))


def takes_step(module: nn.Module) -> bool:
    """See `Capabilities`."""
    return _says(module, "takes_step", False)


def learns_momentum(module: nn.Module) -> bool:
    """See `Capabilities`."""
    return _says(module, "learns_momentum", False)


def clear_window(module: nn.Module) -> None:
    """See `Capabilities`; nothing, for a layer that keeps nothing."""
    clear = getattr(module, "clear_window", None)
    if clear is not None:
        clear()


def _says(module: nn.Module, capability: str, otherwise: bool) -> bool:
    return bool(getattr(module, capability, otherwise))
