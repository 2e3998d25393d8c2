"""Layers whose moments never leave one sample, so that batch size and ranks don't matter to them."""

from torch import Tensor, nn
from torch.nn import functional as F

from syncbn.norm.core.checks import check_channels, check_eps
from syncbn.norm.core.registry import register


@register("group")
class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` over (N, C, *): moments of each sample over C / groups channels and all positions.

    The affine parameters are per channel. Train and eval are the same.

    Source: Wu & He, Group Normalization, ECCV 2018, https://arxiv.org/abs/1803.08494.

    Raises:
        ValueError: `groups` isn't a positive divisor of `num_features`.
    """

    def __init__(self, num_features: int, groups: int = 32, eps: float = 1e-5, affine: bool = True) -> None:
        if groups < 1 or num_features % groups:
            divisors = [g for g in range(1, num_features + 1) if num_features % g == 0]
            raise ValueError(f"groups must divide the {num_features} channels, got {groups}; allowed: {divisors}")
        super().__init__(groups, num_features, eps=eps, affine=affine)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, groups={self.num_groups}, eps={self.eps}, affine={self.affine}"


@register("layer")
class LayerNorm(nn.GroupNorm):
    """Layer normalization of (N, C, *): moments of each sample over channels and positions, affine per channel.

    It is GroupNorm with one group: for (N, C) the same as `torch.nn.LayerNorm(C)`, and for images the layer
    normalization of Wu & He 2018 (https://arxiv.org/abs/1803.08494, Figure 2). Train and eval are the same.

    Source: Ba et al., Layer Normalization, 2016, https://arxiv.org/abs/1607.06450.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(1, num_features, eps=eps, affine=affine)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, eps={self.eps}, affine={self.affine}"


@register("instance")
class InstanceNorm(nn.GroupNorm):
    """Instance normalization of (N, C, *): moments of each sample and channel over positions, affine per channel.

    It is GroupNorm with C groups, which takes any number of spatial dimensions and equals
    `torch.nn.InstanceNorm2d(C, affine=True)` on images. Train and eval are the same.

    Source: Ulyanov et al., Instance Normalization, 2016, https://arxiv.org/abs/1607.08022.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_features, num_features, eps=eps, affine=affine)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, eps={self.eps}, affine={self.affine}"


@register("rms")
class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` over the channels of (N, C, *): each position divided by its root mean square.

        y = x / sqrt(mean over C of x² + eps) · γ

    The axis is the one that transformers mean, channels (dimension 1) at each position by itself, so that (N, C, H, W)
    is normalized as the H·W tokens of an image are. Neither mean nor shift: the convolution before it keeps its bias.
    γ (`weight`) is per channel. Train and eval are the same. The mean of squares is taken in float32 for half inputs.

    Source: Zhang & Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019, https://arxiv.org/abs/1910.07467.

    Raises:
        ValueError: eps isn't greater than 0; the input has another number of channels or fewer than two dimensions.
        TypeError: the input isn't floating point.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        check_eps(eps)
        super().__init__(num_features, eps=eps, elementwise_affine=affine)
        self.num_features = num_features

    def forward(self, input: Tensor) -> Tensor:
        check_channels(input, self.num_features)
        weight = None if self.weight is None else self.weight.to(input.dtype)  # torch warns about a mixture
        output = F.rms_norm(input.movedim(1, -1), self.normalized_shape, weight, self.eps).movedim(-1, 1)
        output = output.to(input.dtype)
        return output.contiguous() if input.is_contiguous() else output

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.elementwise_affine}"


@register("none")
def no_norm(num_features: int) -> nn.Module:
    """No normalization: the baseline. The convolution before it keeps its bias."""
    return nn.Identity()
