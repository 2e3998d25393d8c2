"""Options of `Plots`."""

from dataclasses import dataclass

from syncbn.norm.core.options import option


@dataclass
class PlotsOptions:
    """plots/*.png after training and after the test."""

    folder: str | None = option(
        None, "where plots/ is written, and norm_statistics.csv is read; null: the trainer's own"
    )


OPTIONS = {"Plots": PlotsOptions}
