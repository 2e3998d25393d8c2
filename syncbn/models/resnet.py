"""Residual networks (He et al., CVPR 2016) with any normalization; keys and numbers are torchvision's."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from syncbn.norm.registry import NormFactory, has_bias, norm_layer

Norm = str | NormFactory
Stem = Literal["imagenet", "cifar"]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: y = relu(x + F(x)). (N, in, H, W) -> (N, channels, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, kernel=3, stride=stride, norm=norm)
        self.bn1 = norm(channels)
        self.conv2 = _conv(channels, channels, kernel=3, stride=1, norm=norm)
        self.bn2 = norm(channels)
        self.downsample = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + shortcut)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions and a shortcut; the stride is the 3×3's (version 1.5).

    (N, in, H, W) -> (N, 4·channels, H/stride, W/stride).
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = _conv(in_channels, channels, kernel=1, stride=1, norm=norm)
        self.bn1 = norm(channels)
        self.conv2 = _conv(channels, channels, kernel=3, stride=stride, norm=norm)
        self.bn2 = norm(channels)
        self.conv3 = _conv(channels, out_channels, kernel=1, stride=1, norm=norm)
        self.bn3 = norm(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + shortcut)


class ResNet(nn.Module):
    """A residual network: stem, four stages of residual blocks, global average, linear classifier.

    Input (N, in_channels, H, W) of a floating dtype, output (N, num_classes) logits. The names of parameters and
    buffers are torchvision's, so its checkpoints load. A convolution has a bias only where the norm after it has none
    (`norm="none"`). Train and eval differ in the norm layers alone.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: number of blocks of the four stages.
        norm: a name of `syncbn.available_norms()`, or a function of the number of channels.
        num_classes: number of logits.
        in_channels: channels of the input images.
        stem: "imagenet" (7×7, stride 2, max pool: 224 -> 56 pixels) or "cifar" (3×3, stride 1, for small images).
        width: channels of the first stage; the stages have width·(1, 2, 4, 8), times 4 in a Bottleneck.
        zero_init_residual: start the scale of each block's last norm at 0, so that blocks begin as the identity.

    Raises:
        ValueError: an unknown norm or stem, a size below 1, `zero_init_residual` with a norm that has no scale, or, in
            the forward pass, an input of another shape.
        TypeError: in the forward pass, an input of an integer dtype.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: Sequence[int],
        norm: Norm = "batch",
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: Stem = "imagenet",
        width: int = 64,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
        norm = norm_layer(norm)
        self.in_channels = in_channels

        self.conv1, self.maxpool = _stem(stem, in_channels, width, norm)
        self.bn1 = norm(width)
        channels = [width, 2 * width, 4 * width, 8 * width]
        inputs = [width, *(block.expansion * c for c in channels)]
        self.layer1 = _stage(block, inputs[0], channels[0], depths[0], 1, norm)
        self.layer2 = _stage(block, inputs[1], channels[1], depths[1], 2, norm)
        self.layer3 = _stage(block, inputs[2], channels[2], depths[2], 2, norm)
        self.layer4 = _stage(block, inputs[3], channels[3], depths[3], 2, norm)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs[4], num_classes)

        self._initialize(zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.avgpool(x).flatten(1)
        return self.fc(x)

    def _check_input(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(
                f"expected a floating-point input, got {x.dtype}; scale the images, for example x.float() / 255"
            )
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"expected an input (N, {self.in_channels}, H, W), got {tuple(x.shape)}; "
                f"build the network with in_channels= to match the images"
            )

    def _initialize(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    _zero_scale(module.bn3 if isinstance(module, Bottleneck) else module.bn2)


def resnet18(norm: Norm = "batch", **options: Any) -> ResNet:
    """ResNet-18. `options` are those of `ResNet`: num_classes, in_channels, stem, width, zero_init_residual."""
    return ResNet(BasicBlock, (2, 2, 2, 2), norm, **options)


def resnet34(norm: Norm = "batch", **options: Any) -> ResNet:
    """ResNet-34. `options` are those of `ResNet`: num_classes, in_channels, stem, width, zero_init_residual."""
    return ResNet(BasicBlock, (3, 4, 6, 3), norm, **options)


def resnet50(norm: Norm = "batch", **options: Any) -> ResNet:
    """ResNet-50. `options` are those of `ResNet`: num_classes, in_channels, stem, width, zero_init_residual."""
    return ResNet(Bottleneck, (3, 4, 6, 3), norm, **options)


def resnet101(norm: Norm = "batch", **options: Any) -> ResNet:
    """ResNet-101. `options` are those of `ResNet`: num_classes, in_channels, stem, width, zero_init_residual."""
    return ResNet(Bottleneck, (3, 4, 23, 3), norm, **options)


def resnet152(norm: Norm = "batch", **options: Any) -> ResNet:
    """ResNet-152. `options` are those of `ResNet`: num_classes, in_channels, stem, width, zero_init_residual."""
    return ResNet(Bottleneck, (3, 8, 36, 3), norm, **options)


def _stem(stem: str, in_channels: int, width: int, norm: NormFactory) -> tuple[nn.Conv2d, nn.Module]:
    if stem == "imagenet":
        return _conv(in_channels, width, kernel=7, stride=2, norm=norm), nn.MaxPool2d(3, stride=2, padding=1)
    if stem == "cifar":
        return _conv(in_channels, width, kernel=3, stride=1, norm=norm), nn.Identity()
    raise ValueError(f"unknown stem {stem!r}; allowed: 'imagenet' (7×7, stride 2, max pool), 'cifar' (3×3, stride 1)")


def _stage(
    block: type[BasicBlock | Bottleneck], in_channels: int, channels: int, depth: int, stride: int, norm: NormFactory
) -> nn.Sequential:
    first = block(in_channels, channels, stride, norm)
    rest = [block(block.expansion * channels, channels, 1, norm) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: NormFactory) -> nn.Sequential | None:
    """A projection where the block changes the shape, and None, the identity, where it doesn't."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, kernel=1, stride=stride, norm=norm), norm(out_channels))


def _conv(in_channels: int, out_channels: int, *, kernel: int, stride: int, norm: NormFactory) -> nn.Conv2d:
    bias = not has_bias(norm, out_channels)
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=bias)


def _zero_scale(norm: nn.Module) -> None:
    scale = getattr(norm, "weight", None)
    if scale is None:
        raise ValueError(
            f"zero_init_residual=True needs a norm with a scale, got {norm}; leave it False with this norm"
        )
    nn.init.zeros_(scale)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
