"""Spectral normalization of the preceding layer."""

from __future__ import annotations

from typing import Any

from torch.nn.utils import parametrize

from syncbn.norm.core import compat
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.linear_maps import is_transposed
from syncbn.norm.core.registry import register
from syncbn.norm.core.reparametrizing import Reparametrized
from syncbn.norm.spectral_options import SpectralNormOptions as Options


@register("spectral", options=Options)
class SpectralNorm(Reparametrized):
    """Spectral normalization of the preceding layer: its weight matrix divided by its largest singular value.

        W / σ(W)  for W of the convolution or linear layer that feeds this one;  y = x + β

    which bounds the Lipschitz constant of the layer, as a linear map of patches, by 1, as in GAN discriminators. It
    registers `torch.nn.utils.parametrizations.spectral_norm` on that layer, through `syncbn.convert`, the models of
    this package, or `attach`. The norm itself is the identity plus β (`bias`), so that a convolution without a bias
    still has one.

    σ is estimated by power iteration with `n_power_iterations` steps in each training forward pass, but none in a pass
    recomputed by activation checkpointing or in evaluation; the vectors are buffers of that layer. The result doesn't
    depend on activations, batch size or ranks.

    `detach` (and `syncbn.revert`) restores W, the same `Parameter` object. To keep W / σ instead, for inference, call
    `torch.nn.utils.parametrize.remove_parametrizations(conv, "weight")`.

    Args:
        num_features: channels of the preceding layer.
        n_power_iterations: steps in each training forward pass, at least 1.
        bias: whether there is β, per channel.

    Shape:
        input (N, C, *), the output of the attached layer, of a floating-point dtype; output the same.

    Raises:
        ValueError: `n_power_iterations` below 1; in training, no attached layer; an input with a different number of
            channels.
        TypeError: an input that isn't floating point.

    Source: Miyato et al., Spectral Normalization for Generative Adversarial Networks, ICLR 2018,
        https://arxiv.org/abs/1802.05957.
    """

    def __init__(
        self,
        num_features: int,
        n_power_iterations: int = Options.n_power_iterations,
        bias: bool = Options.bias,
    ) -> None:
        check_arguments(Options, locals())
        super().__init__(num_features, bias)
        self.n_power_iterations = n_power_iterations

    def _parametrize(self, feeder: Any) -> None:
        dim = 1 if is_transposed(feeder) else 0
        normalized = compat.SpectralParametrization(feeder.weight, self.n_power_iterations, dim)
        parametrize.register_parametrization(feeder, "weight", normalized)

    def _restore(self, feeder: Any) -> None:
        parametrize.remove_parametrizations(feeder, "weight", leave_parametrized=False)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_power_iterations={self.n_power_iterations}"
