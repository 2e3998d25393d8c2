"""Options of `NormStatisticsRecorder`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option


@dataclass
class NormStatisticsOptions:
    """Each norm layer's running mean and variance over time."""

    every_n_steps: Count = option(10, "optimizer steps between rows")
    folder: str | None = option(None, "where norm_statistics.csv is written; null: the trainer's own")


OPTIONS = {"NormStatisticsRecorder": NormStatisticsOptions}
