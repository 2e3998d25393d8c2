"""Options of `NormL1`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Positive, option


@dataclass
class NormL1Options:
    """L1 penalty on the scales of batch norms, before `syncbn.prune` (Liu et al. 2017)."""

    strength: Positive = option(1e-4, "weight of the penalty; the paper's, for 160 epochs")


OPTIONS = {"NormL1": NormL1Options}
