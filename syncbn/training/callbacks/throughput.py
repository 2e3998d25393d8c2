"""Lightning callbacks with arguments that a YAML file can't express."""

from typing import Any

from lightning.pytorch.callbacks import ThroughputMonitor

from syncbn.training.callbacks.throughput_options import ThroughputOptions as Options


def throughput_monitor(window_size: int = Options.window_size) -> ThroughputMonitor:
    """Make a callback that logs samples and batches per second, for batches (inputs, labels).

    Args:
        window_size: number of batches to average over.
    """
    return ThroughputMonitor(batch_size_fn=_samples, window_size=window_size)


def _samples(batch: Any) -> int:
    return len(batch[1])
