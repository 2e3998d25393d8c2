"""Options of `instance`."""

from dataclasses import dataclass

from syncbn.norm.core.shared_options import Affine


@dataclass
class InstanceNormOptions(Affine):
    """Instance normalization (Ulyanov et al. 2016): moments of each sample and channel."""


OPTIONS = {"instance": InstanceNormOptions}
