"""The options of `frozen`."""

from dataclasses import dataclass

from syncbn.norm.core.shared_options import Biased


@dataclass
class FrozenBatchNormOptions(Biased):
    """Batch normalization with fixed statistics and a fixed scale and shift, as buffers: for weights trained before."""


OPTIONS = {"frozen": FrozenBatchNormOptions}
