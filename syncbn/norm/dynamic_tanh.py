"""Dynamic tanh: normalization without statistics, by a learned squashing function."""

import torch
from torch import Tensor

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.pointwise import PointwiseNorm
from syncbn.norm.core.registry import register
from syncbn.norm.dynamic_tanh_options import DynamicTanhOptions as Options


@register("dynamic_tanh", options=Options)
class DynamicTanh(PointwiseNorm):
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
