"""Momentum of running statistics: what the number means.

- Here and in torch: running ← (1 - momentum) · running + momentum · batch. 0.1 is usual; the larger, the faster.
- In Keras and TensorFlow: running ← momentum · running + (1 - momentum) · batch. 0.99 is usual; the larger, the slower.
  The same thing is momentum=0.01 here: `norm_layer`, `convert` and configs take `keras_momentum=0.99` too.
- None, in torch and here: the average of all batches so far, running ← running + (batch - running) / batches.

Either way the statistics are those of about the last 1 / momentum batches (of torch's convention).
"""

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.shared_options import Running


def from_keras(keras_momentum: float) -> float:
    """The momentum, as torch and this package count it, that Keras calls `keras_momentum`.

    Raises:
        ValueError: it isn't in [0, 1].
    """
    check_arguments(Running, {"keras_momentum": keras_momentum})
    return 1 - keras_momentum


def check_momentum(momentum: float | None) -> None:
    """Raise `ValueError` unless `momentum` is in [0, 1] or None."""
    check_arguments(Running, {"momentum": momentum})
