"""Weight normalization of the layer before."""

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
    """Weight normalization of the layer before: each filter's length and direction are learned apart.

        w = g · v / ‖v‖  for each filter w of the convolution or linear layer that feeds this one;  y = x + β

    It is `torch.nn.utils.parametrizations.weight_norm` on that layer, which `syncbn.convert`, the models of this
    package, or `attach` put there. What stands in the norm's place is the identity plus β (`bias`), so that a
    convolution without a bias keeps one. No activations are looked at, so train and eval are the same, and batch size
    and ranks don't matter.

    v is the `Parameter` that the layer had as `weight`; g is a new one, which an optimizer made before doesn't have.
    `detach` (and `syncbn.revert`) puts g · v / ‖v‖ back into it. The filters of a transposed convolution are in its
    weight's dimension 1; where it has groups, those in the same place of each group share their length.

    Args:
        num_features: channels of the layer before.
        bias: whether there is β, per channel.

    Shape:
        input (N, C, *), the output of the attached layer, of a floating-point dtype; output the same.

    Raises:
        ValueError: in training, no attached layer; the input has another number of channels.
        TypeError: the input isn't floating point.

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
            weight = torch.where(g == length, v, feeder.weight)  # what hasn't been trained stays to the last bit
            parametrize.remove_parametrizations(feeder, "weight")
            v.copy_(weight)
        feeder.weight = v
