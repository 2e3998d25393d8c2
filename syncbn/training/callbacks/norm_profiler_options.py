"""The options of `NormProfiler`."""

from dataclasses import dataclass

from syncbn.norm.core.options import option


@dataclass
class NormProfilerOptions:
    """Each norm's time in compute and in communication."""

    folder: str | None = option(None, "where norm_times.csv is written; null: the trainer's own")


OPTIONS = {"NormProfiler": NormProfilerOptions}
