"""No normalization."""

from torch import nn

from syncbn.norm.core.registry import register
from syncbn.norm.none_options import NoNormOptions as Options


@register("none", options=Options)
def no_norm(num_features: int) -> nn.Module:
    """No normalization: the baseline. The preceding convolution keeps its bias."""
    return nn.Identity()
