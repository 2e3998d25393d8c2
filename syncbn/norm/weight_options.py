"""Options of `weight`."""

from dataclasses import dataclass

from syncbn.norm.core.options import option


@dataclass
class WeightNormOptions:
    """Weight normalization (Salimans & Kingma 2016) of the preceding convolution: separate length and direction."""

    bias: bool = option(True, "whether there is β, per channel")


OPTIONS = {"weight": WeightNormOptions}
