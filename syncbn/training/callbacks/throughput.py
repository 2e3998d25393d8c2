"""Lightning callbacks with arguments that a YAML file can't express."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import ThroughputMonitor
from torch import Tensor

from syncbn.training.callbacks.throughput_options import ThroughputOptions as Options


def throughput_monitor(window_size: int = Options.window_size) -> ThroughputMonitor:
    """Samples and batches a second, for batches of anything whose first tensor has a row for each sample.

    Args:
        window_size: number of batches to average over.
    """
    return ThroughputMonitor(batch_size_fn=_samples, window_size=window_size)


def _samples(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((found for part in parts if (found := _samples(part))), 0)
