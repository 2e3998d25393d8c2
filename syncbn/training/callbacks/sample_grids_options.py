"""Options of `SampleGrids`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option


@dataclass
class SampleGridsOptions:
    """Grids of a generator's images over the epochs, in samples/ and W&B."""

    every_n_epochs: Count = option(10, "epochs between two grids")
    rows: Count = option(8, "number of rows and columns")
    folder: str | None = option(None, "folder for samples/; null: the trainer's")


OPTIONS = {"SampleGrids": SampleGridsOptions}
