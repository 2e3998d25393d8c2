"""Options of `dynamic_erf`."""

from dataclasses import dataclass

from syncbn.norm.core.options import option
from syncbn.norm.core.shared_options import Pointwise


@dataclass
class DynamicErfOptions(Pointwise):
    """Dynamic erf (Chen et al. 2025): erf(α·x + s), without statistics."""

    shift_init: float = option(0.0, "initial s")


OPTIONS = {"dynamic_erf": DynamicErfOptions}
