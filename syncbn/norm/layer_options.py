"""Options of `layer`."""

from dataclasses import dataclass

from syncbn.norm.core.shared_options import Affine


@dataclass
class LayerNormOptions(Affine):
    """Layer normalization (Ba et al. 2016): moments of each sample over all channels and positions."""


OPTIONS = {"layer": LayerNormOptions}
