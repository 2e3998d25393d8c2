"""The options of `WandbMedia`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, Natural, option


@dataclass
class WandbMediaOptions:
    """Sample predictions as a table of images and norm statistics as histograms, where a run logs to W&B."""

    num_samples: Natural = option(32, "rows of the table; 0: no table")
    every_n_epochs: Count = option(5, "epochs between two logs")
    histograms: bool = option(True, "whether to log the norm statistics")


OPTIONS = {"WandbMedia": WandbMediaOptions}
