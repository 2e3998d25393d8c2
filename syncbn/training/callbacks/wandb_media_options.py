"""Options of `WandbMedia`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, Natural, option


@dataclass
class WandbMediaOptions:
    """For runs that log to W&B: sample predictions as a table of images, and norm statistics as histograms."""

    num_samples: Natural = option(32, "rows of the table; 0: no table")
    every_n_epochs: Count = option(5, "epochs between two logs")
    histograms: bool = option(True, "whether to log the norm statistics")


OPTIONS = {"WandbMedia": WandbMediaOptions}
