"""Weight normalization of the preceding layer."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils import parametrizations, parametrize

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.linear_maps import is_transposed
from syncbn.norm.core.registry import register
from syncbn.norm.core.reparametrizing import Reparametrized
from syncbn.norm.weight_options import WeightNormOptions as Options


@register("weight", options=Options)
class WeightNorm(Reparametrized):
    """Weight normalization of the preceding layer: separate length and direction of each filter.

        w = g · v / ‖v‖  for each filter w of the convolution or linear layer that feeds this one;  y = x + β

    It registers `torch.nn.utils.parametrizations.weight_norm` on that layer, through `syncbn.convert`, the models of
    this package, or `attach`. The norm itself is the identity plus β (`bias`), so that a convolution without a bias
    still has one. Train and eval are the same; the result doesn't depend on activations, batch size or ranks.

    v is the `Parameter` that the layer had as `weight`; g is a new one, which an earlier optimizer doesn't have.
    `detach` (and `syncbn.revert`) writes g · v / ‖v‖ back to v. The filters of a transposed convolution are in its
    weight's dimension 1; with groups, filters at the same index in each group share their length.

    Args:
        num_features: channels of the preceding layer.
        bias: whether there is β, per channel.

    Shape:
        input (N, C, *), the output of the attached layer, of a floating-point dtype; output the same.

    Raises:
        ValueError: in training, no attached layer; an input with a different number of channels.
        TypeError: an input that isn't floating point.

    Source: Salimans & Kingma, Weight Normalization, NeurIPS 2016, https://arxiv.org/abs/1602.07868, without its
        initialization by a batch of data.
    """

    def __init__(self, num_features: int, bias: bool = Options.bias) -> None:
        check_arguments(Options, locals())
        super().__init__(num_features, bias)

    def _parametrize(self, feeder: Any) -> None:
        weight = feeder.weight
        parametrizations.weight_norm(feeder, "weight", dim=1 if is_transposed(feeder) else 0)
        feeder.parametrizations.weight.original1 = weight

    def _restore(self, feeder: Any) -> None:
        normalized = feeder.parametrizations.weight
        g, v = normalized.original0, normalized.original1
        with torch.no_grad():
            length, _ = normalized[0].right_inverse(v)
            weight = torch.where(g == length, v, feeder.weight)  # untrained filters stay bitwise the same
            parametrize.remove_parametrizations(feeder, "weight")
            v.copy_(weight)
        feeder.weight = v
