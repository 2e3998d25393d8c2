"""Layer normalization: moments of each sample."""

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.grouped import Grouped
from syncbn.norm.core.registry import register
from syncbn.norm.layer_options import LayerNormOptions as Options


@register("layer", options=Options)
class LayerNorm(Grouped):
    """Layer normalization of (N, C, *): moments of each sample over channels and positions, affine per channel.

    It is GroupNorm with one group: for (N, C) the same as `torch.nn.LayerNorm(C)`, and for images the layer
    normalization of Wu & He 2018 (https://arxiv.org/abs/1803.08494, Figure 2). Train and eval are the same.

    Source: Ba et al., Layer Normalization, 2016, https://arxiv.org/abs/1607.06450.
    """

    def __init__(self, num_features: int, eps: float = Options.eps, affine: bool = Options.affine) -> None:
        check_arguments(Options, locals())
        super().__init__(1, num_features, eps=eps, affine=affine)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, eps={self.eps}, affine={self.affine}"
