"""Instance normalization: moments of each sample and channel."""

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.checks import check_num_features
from syncbn.norm.core.grouped import Grouped
from syncbn.norm.core.registry import register
from syncbn.norm.instance_options import InstanceNormOptions as Options


@register("instance", options=Options)
class InstanceNorm(Grouped):
    """Instance normalization of (N, C, *): moments of each sample and channel over positions, affine per channel.

    It is GroupNorm with C groups, which takes any number of spatial dimensions and equals
    `torch.nn.InstanceNorm2d(C, affine=True)` on images. Train and eval are the same.

    Source: Ulyanov et al., Instance Normalization, 2016, https://arxiv.org/abs/1607.08022.
    """

    def __init__(self, num_features: int, eps: float = Options.eps, affine: bool = Options.affine) -> None:
        check_arguments(Options, locals())
        num_features = check_num_features(num_features)
        super().__init__(num_features, num_features, eps=eps, affine=affine)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, eps={self.eps}, affine={self.affine}"
