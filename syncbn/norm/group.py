"""Group normalization: moments of each sample's channel groups."""

from typing import Literal

import torch
import torch.fx
from torch import Tensor
from torch.nn import functional as F

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.checks import check_dimensions, check_divides, divisors, warn_of_small_groups
from syncbn.norm.core.grouped import Grouped
from syncbn.norm.core.registry import register
from syncbn.norm.group_options import GroupNormOptions as Options

# A symbolic trace records these calls, and knows no shape.
torch.fx.wrap("check_dimensions")
torch.fx.wrap("warn_of_small_groups")

_USUAL_GROUPS = 32  # the paper's


@register("group", options=Options)
class GroupNorm(Grouped):
    """`torch.nn.GroupNorm` over (N, C, *): moments of each sample over C / groups channels and all positions.

    The affine parameters are per channel. Train and eval are the same.

    Args:
        num_features: C.
        groups: a divisor of C; "auto" for the largest one up to 32, the paper's number of groups.
        eps: added to the variance; greater than 0.
        affine: whether there are γ (`weight`) and β (`bias`).

    Raises:
        ValueError: `groups` isn't a positive divisor of `num_features`; an argument out of its range.

    Source: Wu & He, Group Normalization, ECCV 2018, https://arxiv.org/abs/1803.08494.
    """

    def __init__(
        self,
        num_features: int,
        groups: int | Literal["auto"] = Options.groups,
        eps: float = Options.eps,
        affine: bool = Options.affine,
    ) -> None:
        check_divides("groups", groups, num_features)
        check_arguments(Options, locals())
        number = max(g for g in divisors(num_features) if g <= _USUAL_GROUPS) if groups == "auto" else groups
        super().__init__(number, num_features, eps=eps, affine=affine)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, *); warn where a group has one value or two."""
        check_dimensions(input, self.dimensions)
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            warn_of_small_groups(input, self.num_groups)
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)  # TorchScript has no super()

    def extra_repr(self) -> str:
        return f"{self.num_channels}, groups={self.num_groups}, eps={self.eps}, affine={self.affine}"
