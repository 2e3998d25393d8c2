"""Momentum of running statistics: what the number means, and how it changes in the course of a training.

- Here and in torch: running ← (1 - momentum) · running + momentum · batch. 0.1 is usual; the larger, the faster.
- In Keras and TensorFlow: running ← momentum · running + (1 - momentum) · batch. 0.99 is usual; the larger, the slower.
  The same thing is momentum=0.01 here: `norm_layer`, `convert` and configs take `keras_momentum=0.99` too.
- None, in torch and here: the average of all batches so far, running ← running + (batch - running) / batches.

Either way the statistics are those of about the last 1 / momentum batches (of torch's convention).
"""

from torch import nn

from syncbn.norm import compat
from syncbn.norm.select import Globs, select_layers


def from_keras(keras_momentum: float) -> float:
    """The momentum, as torch and this package count it, that Keras calls `keras_momentum`.

    Raises:
        ValueError: it isn't in [0, 1].
    """
    if not 0 <= keras_momentum <= 1:
        raise ValueError(f"keras_momentum must be in [0, 1], got {keras_momentum}; Keras's own default is 0.99")
    return 1 - keras_momentum


def set_momentum(
    model: nn.Module, momentum: float | None, *, include: Globs = None, exclude: Globs = None
) -> nn.Module:
    """Set the momentum of every layer that has running statistics, in place, as torch counts it.

    Layers whose momentum is a parameter, `learnable_momentum`, keep theirs.

    Args:
        model: any model with batch normalization layers of torch or of this package.
        momentum: in [0, 1], or None for the average of all batches.
        include: globs of module names, as in `model.named_modules()`. All when None.
        exclude: globs of module names to leave as they are.

    Returns:
        `model`.

    Raises:
        ValueError: a momentum out of its range; a glob that matches no such layer; no such layer.
    """
    check_momentum(momentum)
    layers = select_layers(model, _has_momentum, include, exclude)
    if not layers:
        raise ValueError("the model has no layer with running statistics, and so no momentum to set")
    for _, layer in layers:
        layer.momentum = momentum  # type: ignore[assignment]
    return model


def check_momentum(momentum: float | None) -> None:
    """Raise `ValueError` unless `momentum` is in [0, 1] or None."""
    if momentum is not None and not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1], or None for the average of all batches, got {momentum}")


def _has_momentum(module: nn.Module) -> bool:
    tracks = isinstance(module, compat.NORMS) and getattr(module, "running_mean", None) is not None
    return tracks and hasattr(module, "momentum") and not hasattr(module, "momentum_logit")
