"""RMS normalization: each position divided by the root mean square of its channels."""

from torch import Tensor, nn
from torch.nn import functional as F

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.checks import check_channels, check_num_features
from syncbn.norm.core.leaf import Leaf
from syncbn.norm.core.registry import register
from syncbn.norm.rms_options import RMSNormOptions as Options


@register("rms", options=Options)
class RMSNorm(Leaf, nn.RMSNorm):
    """`torch.nn.RMSNorm` over the channels of (N, C, *): each position divided by its root mean square.

        y = x / sqrt(mean over C of x² + eps) · γ

    As in transformers, each position is normalized over its channels (dimension 1), so (N, C, H, W) is treated as the
    H·W tokens of an image. There is no mean and no shift: the preceding convolution keeps its bias. γ (`weight`) is per
    channel. Train and eval are the same. The mean of squares is computed in float32 for half inputs.

    Source: Zhang & Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019, https://arxiv.org/abs/1910.07467.

    Raises:
        ValueError: eps isn't greater than 0; an input with a different number of channels or fewer than two dimensions.
        TypeError: an input that isn't floating point.
    """

    def __init__(self, num_features: int, eps: float = Options.eps, affine: bool = Options.affine) -> None:
        check_arguments(Options, locals())
        num_features = check_num_features(num_features)
        super().__init__(num_features, eps=eps, elementwise_affine=affine)
        self.num_features = num_features

    def forward(self, input: Tensor) -> Tensor:
        check_channels(input, self.num_features)
        weight = None if self.weight is None else self.weight.to(input.dtype)  # torch warns about mixed dtypes
        output = F.rms_norm(input.movedim(1, -1), self.normalized_shape, weight, self.eps).movedim(-1, 1)
        output = output.to(input.dtype)
        return output.contiguous() if input.is_contiguous() else output

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.elementwise_affine}"
