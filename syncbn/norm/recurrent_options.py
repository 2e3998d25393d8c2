"""Options of `recurrent`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option
from syncbn.norm.core.shared_options import Synchronized, Tracking


@dataclass
class RecurrentBatchNormOptions(Synchronized, Tracking):
    """Batch normalization for recurrent networks (Cooijmans et al. 2017): statistics of each time step."""

    max_length: Count = option(
        100,
        "time steps with their own statistics; later ones share the last",
        refusal="max_length must be at least 1, got {value}; take the length of the sequences",
    )
    gamma_init: float = option(0.1, "initial γ")


OPTIONS = {"recurrent": RecurrentBatchNormOptions}
