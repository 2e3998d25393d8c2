"""A norm: registered, it is a choice of `norm=`, and its arguments are options, `norm.eps=1e-6` say."""

import torch
from torch import Tensor, nn

from syncbn.norm import register


@register("pixel")
class PixelNorm(nn.Module):
    """Every position's features divided by their root mean square: y = x / sqrt(mean over C of x² + eps).

    Source: Karras et al., Progressive Growing of GANs, ICLR 2018, https://arxiv.org/abs/1710.10196, section 4.2.

    Args:
        num_features: channels.
        eps: above 0.
    """

    def __init__(self, num_features: int, eps: float = 1e-8) -> None:
        super().__init__()
        if eps <= 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + self.eps)
