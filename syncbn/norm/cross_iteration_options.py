"""Options of `cross_iteration`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, Natural, option
from syncbn.norm.core.shared_options import Synchronized, Tracking


@dataclass
class CrossIterationOptions(Synchronized, Tracking):
    """Cross-iteration batch normalization (Yao et al. 2021): moments of recent iterations, at current weights."""

    window: Count = option(8, "iterations to take moments over, including the current one; 1 is sync")
    burn_in: Natural = option(0, "first iterations that use only the current batch's moments")
    sync: bool = option(True, "whether moments are of all ranks' batches instead of this rank's")


OPTIONS = {"cross_iteration": CrossIterationOptions}
