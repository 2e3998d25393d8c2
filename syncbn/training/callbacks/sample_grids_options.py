"""Options of `SampleGrids`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option


@dataclass
class SampleGridsOptions:
    """Grids of a generator's images over the epochs, in samples/ and W&B."""

    every_n_epochs: Count = option(10, "epochs between two grids")
    rows: Count = option(8, "images in a row, and rows")
    folder: str | None = option(None, "where samples/ is written; null: the trainer's own")


OPTIONS = {"SampleGrids": SampleGridsOptions}
