"""Options of `NormProfiler`."""

from dataclasses import dataclass

from syncbn.norm.core.options import option


@dataclass
class NormProfilerOptions:
    """Each norm's compute and communication time."""

    folder: str | None = option(None, "where norm_times.csv is written; null: the trainer's own")


OPTIONS = {"NormProfiler": NormProfilerOptions}
