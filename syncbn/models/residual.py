"""Residual blocks with the norm in one of three places."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from syncbn.models.common import conv2d, zero_scale
from syncbn.models.resnet_options import Activation, Placement
from syncbn.models.resnet_options import ResNetOptions as Options
from syncbn.norm.core.registry import NormFactory

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"relu": F.relu, "leaky_relu": F.leaky_relu}


class ResidualBlock(nn.Module):
    """Base residual block: convolutions, each with a norm, added to a shortcut; subclasses define the convolutions.

    (N, in, H, W) -> (N, expansion·channels, H/stride, W/stride). With F the convolutions:

    - "post_conv": x -> conv, norm, relu, ..., conv, norm; y = relu(F(x) + shortcut). He et al. 2015.
    - "post_activation": x -> conv, relu, norm, ...; y = F(x) + shortcut.
    - "pre_activation": x -> norm, relu, conv, ...; y = F(x) + shortcut. He et al. 2016, version 2.

    A convolution has no bias where a norm after it adds one; before a ReLU ("post_activation") it keeps its own.
    `activation="leaky_relu"` replaces each ReLU by a LeakyReLU of slope 0.01. `checkpointed` blocks save only their
    input for the backward pass, which recomputes the rest.

    Source: He et al., Deep Residual Learning, CVPR 2016, https://arxiv.org/abs/1512.03385; Identity Mappings in Deep
    Residual Networks, ECCV 2016, https://arxiv.org/abs/1603.05027.
    """

    expansion: int
    conv1: nn.Conv2d
    bn1: nn.Module

    def __init__(
        self,
        in_channels: int,
        shapes: list[tuple[int, int, int]],
        norm: NormFactory,
        placement: Placement,
        activation: Activation,
        checkpointed: bool,
    ) -> None:
        super().__init__()
        self.placement = placement
        self.activate = ACTIVATIONS[activation]
        self.checkpointed = checkpointed
        channels, total_stride = in_channels, 1
        for i, (out_channels, kernel, stride) in enumerate(shapes, start=1):
            bias = bias_before(placement)
            setattr(
                self, f"conv{i}", conv2d(channels, out_channels, kernel=kernel, stride=stride, norm=norm, bias=bias)
            )
            setattr(self, f"bn{i}", norm(channels if placement == "pre_activation" else out_channels))
            channels, total_stride = out_channels, total_stride * stride
        self.downsample = _projection(in_channels, channels, total_stride, norm, placement)
        self.depth = len(shapes)

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(self._block, x, use_reentrant=False)
        return self._block(x)

    def _block(self, x: Tensor) -> Tensor:
        if self.placement == "pre_activation":
            return self._pre_activation(x)
        if self.placement == "post_activation":
            return self._post_activation(x)
        return self._post_conv(x)

    def _post_conv(self, x: Tensor) -> Tensor:
        y = x
        *inner, (last_conv, last_norm) = self._layers()
        for conv, norm in inner:
            y = self.activate(norm(conv(y)))
        return self.activate(last_norm(last_conv(y)) + self._shortcut(x))

    def _post_activation(self, x: Tensor) -> Tensor:
        y = x
        for conv, norm in self._layers():
            y = norm(self.activate(conv(y)))
        return y + self._shortcut(x)

    def _pre_activation(self, x: Tensor) -> Tensor:
        y = self.activate(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y)
        for conv, norm in self._layers()[1:]:
            y = conv(self.activate(norm(y)))
        return y + shortcut

    def zero_init(self) -> None:
        """Make the block start as its shortcut: zero its last norm's scale or, in pre-activation, its last weight."""
        last_conv, last_norm = self._layers()[-1]
        if self.placement == "pre_activation":
            nn.init.zeros_(last_conv.weight)
        else:
            zero_scale(last_norm)

    def _layers(self) -> list[tuple[nn.Conv2d, nn.Module]]:
        return [(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in range(1, self.depth + 1)]

    def _shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)


class BasicBlock(ResidualBlock):
    """Two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        norm: NormFactory,
        placement: Placement = Options.placement,
        activation: Activation = Options.activation,
        checkpointed: bool = False,
    ) -> None:
        shapes = [(channels, 3, stride), (channels, 3, 1)]
        super().__init__(in_channels, shapes, norm, placement, activation, checkpointed)


class Bottleneck(ResidualBlock):
    """1×1, 3×3, 1×1 convolutions and a shortcut; the stride is the 3×3's (version 1.5)."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        norm: NormFactory,
        placement: Placement = Options.placement,
        activation: Activation = Options.activation,
        checkpointed: bool = False,
    ) -> None:
        shapes = [(channels, 1, 1), (channels, 3, stride), (self.expansion * channels, 1, 1)]
        super().__init__(in_channels, shapes, norm, placement, activation, checkpointed)


def _projection(
    in_channels: int, out_channels: int, stride: int, norm: NormFactory, placement: Placement
) -> nn.Sequential | None:
    """Projection shortcut where the block changes the shape, else None (identity)."""
    if stride == 1 and in_channels == out_channels:
        return None
    projection = conv2d(in_channels, out_channels, kernel=1, stride=stride, norm=norm)
    if placement == "pre_activation":
        return nn.Sequential(projection)
    return nn.Sequential(projection, norm(out_channels))


def bias_before(placement: Placement) -> bool | None:
    """Argument of `conv2d(bias=)`: True before a ReLU, since no norm cancels it; None leaves it to the norm."""
    return True if placement == "post_activation" else None
