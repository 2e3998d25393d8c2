"""Options of `NormProfiler`."""

from dataclasses import dataclass

from syncbn.norm.core.options import option


@dataclass
class NormProfilerOptions:
    """Each norm's compute and communication time."""

    folder: str | None = option(None, "folder for norm_times.csv; null: the trainer's")


OPTIONS = {"NormProfiler": NormProfilerOptions}
