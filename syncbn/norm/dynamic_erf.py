"""Dynamic erf: dynamic tanh with the error function and a learned shift."""

import torch
from torch import Tensor, nn

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.pointwise import PointwiseNorm
from syncbn.norm.core.registry import register
from syncbn.norm.dynamic_erf_options import DynamicErfOptions as Options


@register("dynamic_erf", options=Options)
class DynamicErf(PointwiseNorm):
    """Dynamic erf (Derf): y = erf(α·x + s) · γ + β, without any statistics.

    As `DynamicTanh`, with a learned shift s and the error function, which is steeper around zero and saturates sooner.
    α and s (`shift`) are scalars of the layer; γ (`weight`) and β (`bias`) are per channel. Train and eval are the
    same; the output doesn't depend on batch size or ranks.

    Args:
        num_features: C.
        alpha_init: initial α; greater than 0.
        shift_init: initial s.
        affine: whether there are γ and β.
        channel_dim: 1 for inputs (N, C, *), -1 for (N, L, C), like a transformer's tokens.

    Shape:
        input (N, C, *) or, with channel_dim=-1, (N, *, C), of a floating-point dtype; output the same.

    Raises:
        ValueError: an argument out of range; an input with a different number of channels or fewer than two dimensions.
        TypeError: an input that isn't floating point.

    Source: Chen et al., Stronger Normalization-Free Transformers, 2025, https://arxiv.org/abs/2512.10938, equation 10.
    """

    def __init__(
        self,
        num_features: int,
        alpha_init: float = Options.alpha_init,
        shift_init: float = Options.shift_init,
        affine: bool = Options.affine,
        channel_dim: int = Options.channel_dim,
    ) -> None:
        check_arguments(Options, locals())
        super().__init__(num_features, alpha_init, affine, channel_dim)
        self.shift_init = shift_init
        self.shift = nn.Parameter(torch.full((1,), float(shift_init)))

    def reset_parameters(self) -> None:
        """Reset α and s to their initial values, γ to 1 and β to 0."""
        super().reset_parameters()
        if "shift" in self._parameters:  # the base's constructor comes before it
            nn.init.constant_(self.shift, self.shift_init)

    def squash(self, x: Tensor) -> Tensor:
        """Compute erf(αx + s)."""
        return torch.erf(self.alpha * x + self.shift)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, shift_init={self.shift_init}"
