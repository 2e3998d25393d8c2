"""Dynamic tanh: a learned squashing function instead of a normalization."""

import torch
from torch import Tensor

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.pointwise import PointwiseNorm
from syncbn.norm.core.registry import register
from syncbn.norm.dynamic_tanh_options import DynamicTanhOptions as Options


@register("dynamic_tanh", options=Options)
class DynamicTanh(PointwiseNorm):
    """Dynamic tanh (DyT): y = tanh(α·x) · γ + β, without any statistics.

    It replaces the layer norms of transformers: α, a learned scalar of the layer, replaces the division by the standard
    deviation, and tanh bounds rare large activations. γ (`weight`) and β (`bias`) are per channel. Train and eval are
    the same; the output doesn't depend on batch size or ranks.

    Args:
        num_features: C.
        alpha_init: initial α; greater than 0.
        affine: whether there are γ and β.
        channel_dim: 1 for inputs (N, C, *), -1 for (N, L, C), like a transformer's tokens.

    Shape:
        input (N, C, *) or, with channel_dim=-1, (N, *, C), of a floating-point dtype; output the same.

    Raises:
        ValueError: an argument out of range; an input with a different number of channels or fewer than two dimensions.
        TypeError: an input that isn't floating point.

    Source: Zhu et al., Transformers without Normalization, CVPR 2025, https://arxiv.org/abs/2503.10622.
    """

    def __init__(
        self,
        num_features: int,
        alpha_init: float = Options.alpha_init,
        affine: bool = Options.affine,
        channel_dim: int = Options.channel_dim,
    ) -> None:
        check_arguments(Options, locals())
        super().__init__(num_features, alpha_init, affine, channel_dim)

    def squash(self, x: Tensor) -> Tensor:
        """Compute tanh(αx)."""
        return torch.tanh(self.alpha * x)
