"""Options of `NormMonitor`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option


@dataclass
class NormMonitorOptions:
    """Monitors each norm's running statistics, train/eval gap and dead channels, with warnings."""

    every_n_steps: Count = option(100, "optimizer steps between measurements")


OPTIONS = {"NormMonitor": NormMonitorOptions}
