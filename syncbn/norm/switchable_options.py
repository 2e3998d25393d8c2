"""Options of `switchable`."""

from dataclasses import dataclass

from syncbn.norm.core.shared_options import Synchronized, Tracking


@dataclass
class SwitchableNormOptions(Synchronized, Tracking):
    """Switchable normalization (Luo et al. 2019): a learned mix of instance, layer and synchronized batch moments."""


OPTIONS = {"switchable": SwitchableNormOptions}
