"""Normalization without statistics: a learned squashing function of every number by itself."""

import torch
from torch import Tensor, nn

from syncbn.norm.core.checks import check_channels, check_num_features
from syncbn.norm.core.registry import register


class _Pointwise(nn.Module):
    """y = squash(x) · γ + β, with γ (`weight`) and β (`bias`) per channel."""

    def __init__(self, num_features: int, alpha_init: float, affine: bool, channel_dim: int) -> None:
        check_num_features(num_features)
        if not alpha_init > 0:
            raise ValueError(f"alpha_init must be greater than 0, got {alpha_init}; 0.5 is the usual value")
        if channel_dim not in (1, -1):
            raise ValueError(f"channel_dim must be 1, for (N, C, *), or -1, for (N, L, C), got {channel_dim}")
        super().__init__()
        self.num_features = num_features
        self.alpha_init = alpha_init
        self.channel_dim = channel_dim
        self.alpha = nn.Parameter(torch.full((1,), float(alpha_init)))
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None

    def squash(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        check_channels(input, self.num_features, self.channel_dim)
        output = self.squash(input)
        if self.weight is not None and self.bias is not None:
            shape = [-1] if self.channel_dim == -1 else [-1, *[1] * (input.dim() - 2)]
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    def extra_repr(self) -> str:
        options = f"affine={self.weight is not None}, channel_dim={self.channel_dim}"
        return f"{self.num_features}, alpha_init={self.alpha_init}, {options}"


@register("dynamic_tanh")
class DynamicTanh(_Pointwise):
    """Dynamic tanh (DyT): y = tanh(α·x) · γ + β, without any statistics.

    It was made to stand where a transformer has its layer norms: α, one learned number for the whole layer, takes the
    place of the division by the deviation, and tanh bounds the rare large activations. γ (`weight`) and β (`bias`) are
    per channel. Train and eval are the same; batch size and ranks don't matter.

    Args:
        num_features: C.
        alpha_init: where α starts; greater than 0.
        affine: whether there are γ and β.
        channel_dim: 1 for inputs (N, C, *), -1 for (N, L, C), as the tokens of a transformer are.

    Shape:
        input (N, C, *) or, with channel_dim=-1, (N, *, C), of a floating-point dtype; output the same.

    Raises:
        ValueError: an argument out of its range; the input has another number of channels or fewer than two dimensions.
        TypeError: the input isn't floating point.

    Source: Zhu et al., Transformers without Normalization, CVPR 2025, https://arxiv.org/abs/2503.10622.
    """

    def __init__(self, num_features: int, alpha_init: float = 0.5, affine: bool = True, channel_dim: int = 1) -> None:
        super().__init__(num_features, alpha_init, affine, channel_dim)

    def squash(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x)


@register("dynamic_erf")
class DynamicErf(_Pointwise):
    """Dynamic erf (Derf): y = erf(α·x + s) · γ + β, without any statistics.

    As `DynamicTanh`, with the error function, which is steeper around zero and flat sooner, and a learned shift s. α
    and s (`shift`) are one number each for the whole layer; γ (`weight`) and β (`bias`) are per channel. Train and eval
    are the same; batch size and ranks don't matter.

    Args:
        num_features: C.
        alpha_init: where α starts; greater than 0.
        shift_init: where s starts.
        affine: whether there are γ and β.
        channel_dim: 1 for inputs (N, C, *), -1 for (N, L, C), as the tokens of a transformer are.

    Shape:
        input (N, C, *) or, with channel_dim=-1, (N, *, C), of a floating-point dtype; output the same.

    Raises:
        ValueError: an argument out of its range; the input has another number of channels or fewer than two dimensions.
        TypeError: the input isn't floating point.

    Source: Chen et al., Stronger Normalization-Free Transformers, 2025, https://arxiv.org/abs/2512.10938, equation 10.
    """

    def __init__(
        self,
        num_features: int,
        alpha_init: float = 0.5,
        shift_init: float = 0.0,
        affine: bool = True,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(num_features, alpha_init, affine, channel_dim)
        self.shift_init = shift_init
        self.shift = nn.Parameter(torch.full((1,), float(shift_init)))

    def squash(self, x: Tensor) -> Tensor:
        return torch.erf(self.alpha * x + self.shift)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, shift_init={self.shift_init}"
