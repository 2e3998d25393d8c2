"""Options of `group`."""

from dataclasses import dataclass
from typing import Literal

from syncbn.norm.core.options import Count, option
from syncbn.norm.core.shared_options import Affine


@dataclass
class GroupNormOptions(Affine):
    """Group normalization (Wu & He 2018): moments of each sample over channels / groups channels."""

    groups: Count | Literal["auto"] = option(
        "auto", "number of channel groups; auto: the largest divisor of a layer's channels up to 32"
    )


OPTIONS = {"group": GroupNormOptions}
