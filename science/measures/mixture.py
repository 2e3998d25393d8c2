"""Statistics of a test batch mixed with those of the training."""

from typing import Any

import torch
from torch import Tensor, nn

from syncbn.norm.core.moments import batch_moments, biased_var


def mix_statistics(net: nn.Module, prior: float) -> nn.Module:
    """Make batch norms evaluate by (N·s + n·t) / (N + n), in place.

    s are a layer's running mean and variance, t the biased ones of the current batch of n images, N = `prior`. Running
    statistics don't change.

    Source: Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, NeurIPS
    2020, https://arxiv.org/abs/2006.16971, equation 1.
    """
    for layer in net.modules():
        if isinstance(getattr(layer, "running_mean", None), Tensor):
            layer.register_forward_pre_hook(_Mixture(prior))
            layer.register_forward_hook(_put_back)
    return net.eval()


class _Mixture:
    def __init__(self, prior: float) -> None:
        self.prior = prior

    @torch.no_grad()
    def __call__(self, layer: Any, args: tuple[Tensor, ...]) -> None:
        moments = batch_moments(args[0])
        share = self.prior / (self.prior + len(args[0]))
        layer.kept = layer.running_mean, layer.running_var
        layer.running_mean = share * layer.running_mean + (1 - share) * moments.mean.to(layer.running_mean)
        layer.running_var = share * layer.running_var + (1 - share) * biased_var(moments).to(layer.running_var)


def _put_back(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
    layer.running_mean, layer.running_var = layer.kept
    del layer.kept
