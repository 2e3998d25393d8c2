"""Options of `decorrelated`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option
from syncbn.norm.core.shared_options import Synchronized, Tracking


@dataclass
class DecorrelatedOptions(Synchronized, Tracking):
    """Decorrelated batch normalization (Huang et al. 2019, IterNorm): whitening by the covariance over all ranks."""

    group_size: Count = option(
        64, "channels that are whitened together; must divide the channels of every layer that has more"
    )
    iterations: Count = option(5, "Newton steps")


OPTIONS = {"decorrelated": DecorrelatedOptions}
