"""Base of the norms that are `torch.nn.GroupNorm`."""

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from syncbn.norm.core.checks import check_dimensions, warn_of_small_groups

# A symbolic trace records these calls, and knows no number of dimensions.
torch.fx.wrap("check_dimensions")
torch.fx.wrap("warn_of_small_groups")


class Grouped(nn.GroupNorm):
    """`torch.nn.GroupNorm` with checks of the input. TorchScript and symbolic traces can read it.

    Attributes:
        dimensions: numbers of dimensions that an input may have; any when empty. `convert` sets the old layer's.
    """

    dimensions: list[int]

    def __init__(self, num_groups: int, num_features: int, eps: float, affine: bool) -> None:
        super().__init__(num_groups, num_features, eps=eps, affine=affine)
        self.dimensions = []

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, *)."""
        check_dimensions(input, self.dimensions)
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            warn_of_small_groups(input, self.num_groups)
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
