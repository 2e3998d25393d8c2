"""Filter response normalization and its thresholded linear unit: each sample's channel divided by its RMS."""

import torch
from torch import Tensor, nn

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.checks import check_channels, check_num_features
from syncbn.norm.core.leaf import Leaf
from syncbn.norm.core.registry import register
from syncbn.norm.filter_response_options import FilterResponseOptions as Options
from syncbn.norm.kernels.plain import statistics_dtype

_LEARNED_EPS = 1e-4  # the paper's initial value


@register("filter_response", options=Options)
class FilterResponseNorm(Leaf, nn.Module):
    """Filter response normalization of (N, C, *) with its thresholded activation.

        ν² = mean over positions of x²,  y = x / sqrt(ν² + eps + |ε|) · γ + β,  z = max(y, τ)

    for each sample and channel: the output doesn't depend on batch size or ranks, and train and eval are the same.
    No mean is subtracted, so activations may lie far from zero, and the threshold τ is learned instead of ReLU's 0
    (thresholded linear unit, TLU). γ (`weight`), β (`bias`), τ (`threshold`) and ε (`learned_eps`) are per channel and
    start at 1, 0, 0 and 1e-4.

    With a single position, as in (N, C) or (N, C, 1, 1), ν² is x², and y is close to the sign of x, whose gradient is
    nearly 0, unless ε is comparable to x². There ε must be learned; elsewhere it makes little difference.

    Args:
        num_features: C.
        eps: smallest value added to ν²; greater than 0.
        affine: whether there are γ and β.
        learnable_eps: whether there is ε. The paper uses it for inputs with a single position.
        tlu: whether there is τ. Without it the output is y, for networks that keep their own activation.

    Shape:
        input (N, C, *) of a floating-point dtype; output the same. ν² is float32, or float64 for a float64 input.

    Raises:
        ValueError: eps isn't greater than 0; an input with a different number of channels, fewer than two dimensions,
            or a single position while `learnable_eps` is False.
        TypeError: an input that isn't floating point.

    Source: Singh & Krishnan, Filter Response Normalization Layer, CVPR 2020, https://arxiv.org/abs/1911.09737.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = Options.eps,
        affine: bool = Options.affine,
        learnable_eps: bool = Options.learnable_eps,
        tlu: bool = Options.tlu,
    ) -> None:
        num_features = check_num_features(num_features)
        check_arguments(Options, locals())
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(num_features)) if affine else None
        self.bias = nn.Parameter(torch.empty(num_features)) if affine else None
        self.threshold = nn.Parameter(torch.empty(num_features)) if tlu else None
        self.learned_eps = nn.Parameter(torch.empty(num_features)) if learnable_eps else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset γ to 1, β and τ to 0, and ε to its initial value."""
        initial = ((self.weight, 1.0), (self.bias, 0.0), (self.threshold, 0.0), (self.learned_eps, _LEARNED_EPS))
        for parameter, value in initial:
            if parameter is not None:
                nn.init.constant_(parameter, value)

    def forward(self, input: Tensor) -> Tensor:
        check_channels(input, self.num_features)
        positions = input.shape[2:]
        if self.learned_eps is None and positions.numel() == 1:
            raise ValueError(
                f"an input {tuple(input.shape)} has a single position a channel, which filter response normalization "
                "reduces to its sign; set learnable_eps=True"
            )

        def along(per_channel: Tensor) -> Tensor:
            return per_channel.view(-1, *[1] * len(positions))

        x = input.to(statistics_dtype(input))
        power = x.square().mean(list(range(2, x.dim())), keepdim=True) if positions else x.square()
        eps = self.eps if self.learned_eps is None else self.eps + along(self.learned_eps).abs()
        y = x * torch.rsqrt(power + eps)
        if self.weight is not None:
            y = y * along(self.weight)
        if self.bias is not None:
            y = y + along(self.bias)
        if self.threshold is not None:
            y = torch.maximum(y, along(self.threshold))
        return y.to(input.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}, "
            f"learnable_eps={self.learned_eps is not None}, tlu={self.threshold is not None}"
        )
