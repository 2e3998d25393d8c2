"""Helpers shared by the networks: argument and image checks, convolutions, initialization."""

from typing import Literal

import torch
import torch.fx
from torch import Tensor, nn

from syncbn.norm.core.registry import NormFactory, has_bias

Norm = str | NormFactory


def conv2d(
    in_channels: int, out_channels: int, *, kernel: int, stride: int = 1, norm: NormFactory, bias: bool | None = None
) -> nn.Conv2d:
    """Convolution padded to H/stride, with a bias unless the norm after it adds one; `bias` overrides this."""
    if bias is None:
        bias = not has_bias(norm, out_channels)
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=bias)


def zero_scale(norm: nn.Module) -> None:
    """Set a norm's γ to 0.

    Raises:
        ValueError: the norm has no scale, or divides by it.
    """
    if getattr(norm, "memory", None) == "invert":
        raise ValueError(
            'zero_init_residual=True sets γ to 0, by which memory="invert" divides; leave it False, or use '
            'memory="recompute"'
        )
    scale = getattr(norm, "weight", None)
    if scale is None:
        raise ValueError(
            f"zero_init_residual=True needs a norm with a scale, got {norm}; leave it False with this norm"
        )
    nn.init.zeros_(scale)


def check_sizes(**sizes: int) -> None:
    """Raise `ValueError` for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_images(x: Tensor, in_channels: int) -> None:
    """Raise `TypeError` for an integer dtype and `ValueError` for what isn't (N, in_channels, H, W)."""
    if isinstance(x, torch.fx.Proxy):  # a symbolic trace has no shapes; `syncbn.norm.surgery.feeding` makes one
        return
    if not x.is_floating_point():
        raise TypeError(
            f"expected a floating-point input, got {x.dtype}; scale the images, for example x.float() / 255"
        )
    if x.dim() != 4 or x.shape[1] != in_channels:
        raise ValueError(
            f"expected an input (N, {in_channels}, H, W), got {tuple(x.shape)}; "
            f"build the network with in_channels= to match the images"
        )


def check_image_size(x: Tensor, size: int) -> None:
    """Raise `ValueError` for images that aren't `size` x `size` pixels."""
    if not isinstance(x, torch.fx.Proxy) and tuple(x.shape[-2:]) != (size, size):
        raise ValueError(
            f"expected images of {size} x {size} pixels, got {x.shape[-2]} x {x.shape[-1]}; build the network with "
            "image_size= to match the images, or resize them"
        )


def initialize_convolutions(model: nn.Module, activation: Literal["relu", "sigmoid", "tanh"] = "relu") -> None:
    """Initialize every convolution as He et al. (2015), preserving the gradient's variance; biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity=activation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def global_average(x: Tensor) -> Tensor:
    """Mean over H and W: (N, C, H, W) -> (N, C)."""
    return torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
