"""Base of the layers that apply an elementwise squashing function."""

import torch
from torch import Tensor, nn

from syncbn.norm.core.checks import check_channels, check_num_features
from syncbn.norm.core.leaf import Leaf


class PointwiseNorm(Leaf, nn.Module):
    """y = squash(x) · γ + β, with γ (`weight`) and β (`bias`) per channel."""

    def __init__(self, num_features: int, alpha_init: float, affine: bool, channel_dim: int) -> None:
        num_features = check_num_features(num_features)
        super().__init__()
        self.num_features = num_features
        self.alpha_init = alpha_init
        self.channel_dim = channel_dim
        self.alpha = nn.Parameter(torch.empty(1))
        self.weight = nn.Parameter(torch.empty(num_features)) if affine else None
        self.bias = nn.Parameter(torch.empty(num_features)) if affine else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset α to `alpha_init`, γ to 1 and β to 0."""
        nn.init.constant_(self.alpha, self.alpha_init)
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def squash(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        check_channels(input, self.num_features, self.channel_dim)
        output = self.squash(input)
        shape = [-1] if self.channel_dim == -1 else [-1, *[1] * (input.dim() - 2)]
        if self.weight is not None:
            output = output * self.weight.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        return output.to(input.dtype)

    def extra_repr(self) -> str:
        options = f"affine={self.weight is not None}, channel_dim={self.channel_dim}"
        return f"{self.num_features}, alpha_init={self.alpha_init}, {options}"
