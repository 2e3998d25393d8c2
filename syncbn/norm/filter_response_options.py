"""Options of `filter_response`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Positive, option
from syncbn.norm.core.shared_options import Affine


@dataclass
class FilterResponseOptions(Affine):
    """Filter response normalization (Singh & Krishnan 2020), with its thresholded activation."""

    eps: Positive = option(
        1e-6, "added to the mean square; use 1.0 for images so small that the last maps have a single position"
    )
    learnable_eps: bool = option(True, "whether to add a learned ε, which maps of a single position need")
    tlu: bool = option(
        True, "whether to apply max(y, τ) with a learned τ; without it, only the network's own activation"
    )


OPTIONS = {"filter_response": FilterResponseOptions}
