"""Options of `frozen`."""

from dataclasses import dataclass

from syncbn.norm.core.shared_options import Biased


@dataclass
class FrozenBatchNormOptions(Biased):
    """Batch normalization with fixed statistics, scale and shift, as buffers: for pretrained weights."""


OPTIONS = {"frozen": FrozenBatchNormOptions}
