"""Capabilities of normalization layers, declared by the layers; policies, models and training code ask only for these.

`Capabilities` lists them. Layers of this package, and others derived from `TrackingNorm`, have them as attributes. The
functions below answer for any module, including torch's layers, and use attributes of the same names on other layers.
"""

from typing import Any, ClassVar

from torch import nn

from syncbn.norm.core import compat
from syncbn.norm.core.leaf import Leaf


class Capabilities(Leaf):
    """Capabilities of a layer and their defaults.

    `normalizes_by_batch`, `is_per_channel` and `evaluates_as_batch_norm` are promises about a class's whole behaviour,
    which a subclass may break by overriding any method. So they aren't inherited: a subclass must declare them again.
    """

    normalizes_by_batch: ClassVar[bool] = False
    """In training the output is (x - mean) / sqrt(var + eps) · γ + β by the moments of the current batch alone."""

    is_per_channel: ClassVar[bool] = False
    """All parameters and buffers (C,) have one number for each channel, and no channel's output depends on another."""

    evaluates_as_batch_norm: ClassVar[bool] = False
    """In evaluation the output is (x - running_mean) / sqrt(running_var + eps) · γ + β, and nothing else counts."""

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
        for promise in ("normalizes_by_batch", "is_per_channel", "evaluates_as_batch_norm"):
            if promise not in cls.__dict__:
                setattr(cls, promise, False)

    def clear_window(self) -> None:
        """Clear what is kept of earlier batches besides running statistics, for example after weights were replaced."""


def normalizes_by_batch(module: nn.Module) -> bool:
    """See `Capabilities`; assumed of other batch norms."""
    return _says(module, "normalizes_by_batch", isinstance(module, compat.BatchNormBase))


def is_per_channel(module: nn.Module) -> bool:
    """See `Capabilities`; assumed of other batch norms."""
    return _says(module, "is_per_channel", isinstance(module, compat.BatchNormBase))


def evaluates_as_batch_norm(module: nn.Module) -> bool:
    """See `Capabilities`. Other packages' batch norms do, as far as is known of them."""
    frozen = not isinstance(module, Capabilities) and getattr(module, "running_mean", None) is not None
    return _says(module, "evaluates_as_batch_norm", isinstance(module, compat.BatchNormBase) or frozen)


def synchronizes(module: nn.Module) -> bool:
    """See `Capabilities`; among torch's layers, True for `nn.SyncBatchNorm`."""
    return _says(module, "synchronizes", isinstance(module, nn.SyncBatchNorm))


def tracks_batch(module: nn.Module) -> bool:
    """See `Capabilities`; assumed of other layers with a momentum, and False without running statistics."""
    has_statistics = getattr(module, "running_mean", None) is not None
    return has_statistics and _says(module, "tracks_batch", hasattr(module, "momentum"))


def takes_step(module: nn.Module) -> bool:
    """See `Capabilities`."""
    return _says(module, "takes_step", False)


def learns_momentum(module: nn.Module) -> bool:
    """See `Capabilities`."""
    return _says(module, "learns_momentum", False)


def clear_window(module: nn.Module) -> None:
    """See `Capabilities`; no effect on a layer without a window."""
    clear = getattr(module, "clear_window", None)
    if clear is not None:
        clear()


def _says(module: nn.Module, capability: str, otherwise: bool) -> bool:
    return bool(getattr(module, capability, otherwise))
