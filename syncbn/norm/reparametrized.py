"""Norms of the weights before a layer instead of its input: weight and spectral normalization."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from syncbn.norm.core import compat
from syncbn.norm.core.attachable import check_feeder
from syncbn.norm.core.checks import check_channels, check_num_features
from syncbn.norm.core.linear_maps import is_transposed
from syncbn.norm.core.registry import register


class Reparametrizing(nn.Module):
    """A layer that parametrizes the weight of the convolution or linear layer before it."""

    num_features: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._feeder: list[Any] = []  # in a list, since a module of its own would be in `state_dict` twice

    @property
    def is_attached(self) -> bool:
        """Whether the weight of a layer is parametrized."""
        return bool(self._feeder)

    def attach(self, feeder: nn.Module) -> None:
        """Parametrize the weight of `feeder`, the convolution or linear layer whose output comes here.

        Raises:
            TypeError: `feeder` is neither a convolution nor linear.
            ValueError: it returns another number of channels, or its weight is parametrized already.
        """
        check_feeder(feeder, self.num_features)
        self.detach()
        if parametrize.is_parametrized(feeder, "weight"):
            raise ValueError(
                f"the weight of {feeder} is parametrized already; a layer that feeds two norms is normalized once, so "
                "exclude one of them, or call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first"
            )
        self._parametrize(feeder)
        self._feeder.append(feeder)

    def detach(self) -> None:
        """Take the parametrization off again."""
        for feeder in self._feeder:
            if parametrize.is_parametrized(feeder, "weight"):
                self._restore(feeder)
                for name in [name for name in feeder._parameters if name != "weight"]:  # the order that it had
                    feeder._parameters[name] = feeder._parameters.pop(name)
        self._feeder.clear()

    def _parametrize(self, feeder: Any) -> None:
        raise NotImplementedError

    def _restore(self, feeder: Any) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_feeder": []}  # torch pickles no parametrized layer


class _Reparametrized(Reparametrizing):
    """Stands where a norm stood: the identity plus β, once the layer before it has its weight normalized."""

    def __init__(self, num_features: int, bias: bool) -> None:
        check_num_features(num_features)
        super().__init__()
        self.num_features = num_features
        self.bias = nn.Parameter(torch.zeros(num_features)) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        check_channels(input, self.num_features)
        if self.training and not self._feeder:
            raise ValueError(
                "this layer normalizes the weights of the layer before it, which it doesn't know: call "
                "norm.attach(conv), or syncbn.norm.surgery.feeding.attach_norms(model), as syncbn.convert does"
            )
        if self.bias is None:
            return input
        return (input + self.bias.view(-1, *[1] * (input.dim() - 2))).to(input.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reparametrized:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def extra_repr(self) -> str:
        return f"{self.num_features}, bias={self.bias is not None}"


@register("weight")
class WeightNorm(_Reparametrized):
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

    def __init__(self, num_features: int, bias: bool = True) -> None:
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


@register("spectral")
class SpectralNorm(_Reparametrized):
    """Spectral normalization of the layer before: its weight, as a matrix, divided by its largest singular value.

        W / σ(W)  for W of the convolution or linear layer that feeds this one;  y = x + β

    so that the layer, as a linear map of patches, stretches nothing to more than its length: the Lipschitz bound that
    GAN discriminators are trained with. It is `torch.nn.utils.parametrizations.spectral_norm` on that layer, which
    `syncbn.convert`, the models of this package, or `attach` put there. What stands in the norm's place is the
    identity plus β (`bias`), so that a convolution without a bias keeps one.

    σ is estimated by power iteration, `n_power_iterations` steps at each forward pass in training (a pass that
    activation checkpointing repeats does none) and none in evaluation; the vectors are buffers of that layer. No
    activations are looked at, so batch size and ranks don't matter.

    `detach` (and `syncbn.revert`) gives back W, the very `Parameter`. To keep W / σ instead, for inference, call
    `torch.nn.utils.parametrize.remove_parametrizations(conv, "weight")`.

    Args:
        num_features: channels of the layer before.
        n_power_iterations: steps at each forward pass in training, at least 1.
        bias: whether there is β, per channel.

    Shape:
        input (N, C, *), the output of the attached layer, of a floating-point dtype; output the same.

    Raises:
        ValueError: `n_power_iterations` below 1; in training, no attached layer; the input has another number of
            channels.
        TypeError: the input isn't floating point.

    Source: Miyato et al., Spectral Normalization for Generative Adversarial Networks, ICLR 2018,
        https://arxiv.org/abs/1802.05957.
    """

    def __init__(self, num_features: int, n_power_iterations: int = 1, bias: bool = True) -> None:
        super().__init__(num_features, bias)
        if n_power_iterations < 1:
            raise ValueError(f"n_power_iterations must be at least 1, got {n_power_iterations}; 1 is the usual value")
        self.n_power_iterations = n_power_iterations

    def _parametrize(self, feeder: Any) -> None:
        dim = 1 if is_transposed(feeder) else 0
        normalized = compat.SpectralNorm(feeder.weight, self.n_power_iterations, dim)
        parametrize.register_parametrization(feeder, "weight", normalized)

    def _restore(self, feeder: Any) -> None:
        parametrize.remove_parametrizations(feeder, "weight", leave_parametrized=False)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_power_iterations={self.n_power_iterations}"
