"""Options of `ghost`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option
from syncbn.norm.core.shared_options import Tracking


@dataclass
class GhostBatchNormOptions(Tracking):
    """Ghost batch normalization (Hoffer et al. 2017): moments of small parts of each rank's batch."""

    ghost_batch_size: Count = option(32, "samples in a ghost batch; the last one of a batch may be smaller")


OPTIONS = {"ghost": GhostBatchNormOptions}
