"""Base of the norms that are `torch.nn.GroupNorm`."""

import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from syncbn.norm.core.checks import check_dimensions, check_num_features

torch.fx.wrap("check_dimensions")  # a symbolic trace records the call, and knows no number of dimensions


class Grouped(nn.GroupNorm):
    """`torch.nn.GroupNorm` with a check of the input. TorchScript and symbolic traces can read it.

    Attributes:
        dimensions: numbers of dimensions that an input may have; any when empty. `convert` sets the old layer's.
    """

    dimensions: list[int]

    def __init__(self, num_groups: int, num_features: int, eps: float, affine: bool) -> None:
        super().__init__(num_groups, check_num_features(num_features), eps=eps, affine=affine)
        self.dimensions = []

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, *)."""
        check_dimensions(input, self.dimensions)
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
