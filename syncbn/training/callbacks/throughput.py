"""Lightning callbacks with arguments that a YAML file can't express."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import ThroughputMonitor
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from syncbn.training.callbacks.throughput_options import ThroughputOptions as Options


def throughput_monitor(window_size: int = Options.window_size) -> L.Callback:
    """Samples and batches a second, for batches of anything whose first tensor has a row for each sample.

    Before Lightning 2.6, whose monitor takes all batches for as large as the last one and stops where that one is
    smaller, it is a callback that does nothing, and a warning says so.

    Args:
        window_size: number of batches to average over.
    """
    monitor = ThroughputMonitor(batch_size_fn=_samples, window_size=window_size)
    if not hasattr(monitor, "_samples"):
        rank_zero_warn("throughput isn't measured before Lightning 2.6, which counts unequal batches right")
        return L.Callback()
    return monitor


def _samples(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((found for part in parts if (found := _samples(part))), 0)
