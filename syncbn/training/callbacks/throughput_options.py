"""Options of `throughput_monitor`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option


@dataclass
class ThroughputOptions:
    """Samples per second."""

    window_size: Count = option(100, "number of batches to average over")


OPTIONS = {"throughput_monitor": ThroughputOptions}
