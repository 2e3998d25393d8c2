"""Options of `none`."""

from dataclasses import dataclass


@dataclass
class NoNormOptions:
    """No normalization: the baseline."""


OPTIONS = {"none": NoNormOptions}
