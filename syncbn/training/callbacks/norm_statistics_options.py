"""Options of `NormStatisticsRecorder`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option


@dataclass
class NormStatisticsOptions:
    """Each norm layer's running mean and variance over time."""

    every_n_steps: Count = option(10, "optimizer steps between rows")
    folder: str | None = option(None, "folder for norm_statistics.csv; null: the trainer's")


OPTIONS = {"NormStatisticsRecorder": NormStatisticsOptions}
