"""Momentum of a finished model's running statistics."""

from torch import nn

from syncbn.norm.core import compat
from syncbn.norm.core.capabilities import learns_momentum
from syncbn.norm.core.momentum import check_momentum, from_keras
from syncbn.norm.surgery.select import Globs, select_layers

__all__ = ["check_momentum", "from_keras", "set_momentum"]


def set_momentum(
    model: nn.Module, momentum: float | None, *, include: Globs = None, exclude: Globs = None
) -> nn.Module:
    """Set the momentum, in torch's convention, of every layer with running statistics, in place.

    Layers whose momentum is a parameter, `learnable_momentum`, keep theirs.

    Args:
        model: any model with batch normalization layers of torch or of this package.
        momentum: momentum in [0, 1], or None for the mean of all batches.
        include: globs of module names, as in `model.named_modules()`. All when None.
        exclude: globs of module names to leave unchanged.

    Returns:
        `model`.

    Raises:
        ValueError: a momentum out of range; a glob that matches no such layer; no such layer.
    """
    check_momentum(momentum)
    layers = layers_with_momentum(model, include, exclude)
    if not layers:
        raise ValueError("the model has no layer with running statistics, and so no momentum to set")
    for _, layer in layers:
        layer.momentum = momentum  # type: ignore[assignment]
    return model


def layers_with_momentum(model: nn.Module, include: Globs = None, exclude: Globs = None) -> list[tuple[str, nn.Module]]:
    """The layers that `set_momentum` would set, with their paths."""
    return select_layers(model, _has_momentum, include, exclude)


def _has_momentum(module: nn.Module) -> bool:
    tracks = isinstance(module, compat.NORMS) and getattr(module, "running_mean", None) is not None
    return tracks and hasattr(module, "momentum") and not learns_momentum(module)
