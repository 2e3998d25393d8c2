"""Conventions for the momentum of running statistics.

- Here and in torch: running ← (1 - momentum) · running + momentum · batch. 0.1 is usual; larger is faster.
- In Keras and TensorFlow: running ← momentum · running + (1 - momentum) · batch. 0.99 is usual; larger is slower. It
  equals momentum=0.01 here; `norm_layer`, `convert` and configs also take `keras_momentum=0.99`.
- None, in torch and here: the mean of all batches so far, running ← running + (batch - running) / batches.

The statistics cover about the last 1 / momentum batches (in torch's convention).
"""

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.shared_options import Running


def from_keras(keras_momentum: float) -> float:
    """Convert Keras's momentum to the convention of torch and this package.

    Raises:
        ValueError: a momentum outside [0, 1].
    """
    check_arguments(Running, {"keras_momentum": keras_momentum})
    return 1 - keras_momentum


def check_momentum(momentum: float | None) -> None:
    """Raise `ValueError` unless `momentum` is in [0, 1] or None."""
    check_arguments(Running, {"momentum": momentum})
