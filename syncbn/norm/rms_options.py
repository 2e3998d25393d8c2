"""Options of `rms`."""

from dataclasses import dataclass

from syncbn.norm.core.shared_options import Affine


@dataclass
class RMSNormOptions(Affine):
    """RMS normalization (Zhang & Sennrich 2019): each position divided by the root mean square of its channels."""


OPTIONS = {"rms": RMSNormOptions}
