"""Options of `adaptive`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option
from syncbn.norm.core.shared_options import Running, Synchronized


@dataclass
class AdaptiveBatchNormOptions(Synchronized, Running):
    """Batch normalization with statistics of each domain (AdaBN, Li et al. 2018), one scale and shift for all."""

    domains: Count = option(
        2, "number of domains; training starts in domain 0, syncbn.norm.set_domain(model, i) changes it"
    )


OPTIONS = {"adaptive": AdaptiveBatchNormOptions}
