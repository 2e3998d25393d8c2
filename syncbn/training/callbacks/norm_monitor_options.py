"""The options of `NormMonitor`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option


@dataclass
class NormMonitorOptions:
    """Distances of running statistics, gaps between train and eval, and dead channels of each norm, with warnings."""

    every_n_steps: Count = option(100, "optimizer steps between measurements")


OPTIONS = {"NormMonitor": NormMonitorOptions}
