"""Batch normalization with fixed statistics, scale and shift (frozen)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.registry import register
from syncbn.norm.core.tracking import TrackingNorm
from syncbn.norm.frozen_options import FrozenBatchNormOptions as Options

_AFFINE = ("weight", "bias")


@register("frozen", options=Options)
class FrozenBatchNorm(TrackingNorm):
    """Batch normalization that stays in evaluation mode after `train()`.

        y = (x - running_mean) / sqrt(running_var + eps) · γ + β

    Training and evaluation are the same, bitwise equal to `torch.nn.BatchNorm2d` in evaluation mode, and don't
    communicate. The gradient of x is γ·dy / sqrt(running_var + eps).

    running_mean, running_var, γ (`weight`) and β (`bias`) are buffers: optimizers don't see them, neither weight decay
    nor `model.requires_grad_(True)` affects them, and DDP waits for no gradient. `state_dict` has the keys of
    `torch.nn.BatchNorm2d`, so its checkpoints load.

    `syncbn.convert(model, "frozen")` copies a trained layer's statistics and affine parameters. The layer's
    `Parameter` objects are kept outside the model with their `requires_grad`; updates by an optimizer that still holds
    them have no effect. `syncbn.revert` restores the same objects with the frozen values, so that this optimizer
    continues to train them. To freeze layers for part of a training run without converting them, see `syncbn.freeze`.

    Args:
        num_features: C of an input (N, C, *).
        eps: added to the variance; greater than 0.
        affine: whether there are γ and β.
        bias: whether an affine layer has β.
        device: device of the buffers.
        dtype: dtype of γ and β; the statistics are at least float32.

    Shape:
        input (N, C, *), of a floating-point dtype; output the same.

    Raises:
        ValueError: eps isn't greater than 0; a different number of channels or dimensions; converted from a layer
            without running statistics.
        TypeError: an input that isn't floating point.

    Source:
        He et al., Mask R-CNN, ICCV 2017, https://arxiv.org/abs/1703.06870, whose backbones use it.
    """

    is_per_channel = True
    evaluates_as_batch_norm = True
    tracks_batch = False

    def __init__(
        self,
        num_features: int,
        eps: float = Options.eps,
        affine: bool = Options.affine,
        bias: bool = Options.bias,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_arguments(Options, locals())
        super().__init__(num_features, eps, affine=affine, bias=bias, device=device, dtype=dtype)
        for name in _AFFINE:
            parameter = self._parameters.pop(name)
            self.register_buffer(name, None if parameter is None else parameter.detach())

    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input, None)
        return self.evaluate(input)

    def adopt(self, old: nn.Module) -> None:
        if getattr(old, "running_mean", None) is None:
            raise ValueError(
                "it has no running statistics to freeze (track_running_stats=False): leave it out with exclude="
            )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}, bias={self.bias is not None}"

    def _is_statistic(self, name: str) -> bool:
        return name not in _AFFINE
