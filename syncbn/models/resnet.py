"""Residual networks (He et al., CVPR 2016) with any normalization; same keys and outputs as torchvision's."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from syncbn.models.common import Norm, check_images, check_sizes, conv2d, global_average, initialize_convolutions
from syncbn.models.residual import (
    ACTIVATIONS,
    BasicBlock,
    Bottleneck,
    ResidualBlock,
    bias_before,
)
from syncbn.models.resnet_options import Activation, Placement, Stem
from syncbn.models.resnet_options import ResNetOptions as Options
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.registry import NormFactory, norm_layer
from syncbn.norm.surgery.feeding import attach_norms


class ResNet(nn.Module):
    """A residual network: stem, four stages of residual blocks, global average, linear classifier.

    Input (N, in_channels, H, W) of a floating dtype, output (N, num_classes) logits. The names of parameters and
    buffers are torchvision's, so its checkpoints load. A convolution has a bias only where the norm after it has none
    (`norm="none"`). Train and eval differ only in the norm layers.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: number of blocks in each of the four stages.
        norm: a name of `syncbn.available_norms()`, or a function of the number of channels.
        num_classes: number of logits.
        in_channels: channels of the input images.
        stem: "imagenet" (7×7, stride 2, max pool: 224 -> 56 pixels) or "cifar" (3×3, stride 1, for small images).
        width: channels of the first stage; the stages have width·(1, 2, 4, 8), times 4 in a Bottleneck.
        zero_init_residual: start each block as its shortcut, by the scale of its last norm (its last convolution, where
            placement="pre_activation").
        placement: where the norm stands: "post_conv" (conv, norm, relu; torchvision's), "post_activation" (conv, relu,
            norm) or "pre_activation" (norm, relu, conv; version 2, with one more norm before the average, `bn_last`).
            See `syncbn.models.residual`.
        activation: "relu", or "leaky_relu" of slope 0.01, which `memory="invert"` needs.
        checkpoint_blocks: whether each block saves only its input and the backward pass recomputes the rest: about a
            third more time, for about a third of the memory.

    `norm=norm_layer("sync", fuse_activation=True, memory=...)` fuses each norm with the following sum and activation,
    and saves less for the backward pass: see `syncbn.SyncBatchNorm`.

    Raises:
        ValueError: an unknown norm, stem, placement or activation, a size below 1, `zero_init_residual` with a norm
            that has no scale or `memory="invert"`, or, in the forward pass, an input of the wrong shape.
        TypeError: in the forward pass, an input of an integer dtype.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385.
    """

    head = "fc"  # reinitialized by `load_weights` for a different number of classes

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: Sequence[int],
        norm: Norm = "batch",
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: Stem = Options.stem,
        width: int = Options.width,
        zero_init_residual: bool = Options.zero_init_residual,
        placement: Placement = Options.placement,
        activation: Activation = Options.activation,
        checkpoint_blocks: bool = Options.checkpoint_blocks,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels)
        check_arguments(Options, locals())
        norm = norm_layer(norm)
        self.in_channels = in_channels
        self.placement = placement
        self.activate = ACTIVATIONS[activation]

        self.conv1, self.maxpool = _stem(stem, in_channels, width, norm, bias=bias_before(placement))
        if placement != "pre_activation":
            self.bn1 = norm(width)
        build = functools.partial(
            block, norm=norm, placement=placement, activation=activation, checkpointed=checkpoint_blocks
        )
        channels = [width, 2 * width, 4 * width, 8 * width]
        inputs = [width, *(block.expansion * c for c in channels)]
        self.layer1 = _stage(build, inputs[0], channels[0], depths[0], 1)
        self.layer2 = _stage(build, inputs[1], channels[1], depths[1], 2)
        self.layer3 = _stage(build, inputs[2], channels[2], depths[2], 2)
        self.layer4 = _stage(build, inputs[3], channels[3], depths[3], 2)
        if placement == "pre_activation":
            self.bn_last = norm(inputs[4])
        self.fc = nn.Linear(inputs[4], num_classes)

        initialize_convolutions(self)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, ResidualBlock):
                    module.zero_init()
        attach_norms(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(global_average(self.stages(x)[-1]))

    def stages(self, x: Tensor) -> list[Tensor]:
        """Outputs of the four stages (N, expansion·width·2^i, H/stride, W/stride), i and stride growing.

        The strides are 4, 8, 16 and 32, or 1, 2, 4 and 8 with the cifar stem.
        """
        check_images(x, self.in_channels)
        x = self.maxpool(self._first_norm(self.conv1(x)))
        first = self.layer1(x)
        second = self.layer2(first)
        third = self.layer3(second)
        last = self.layer4(third)
        if self.placement == "pre_activation":
            last = self.activate(self.bn_last(last))
        return [first, second, third, last]

    def _first_norm(self, x: Tensor) -> Tensor:
        if self.placement == "pre_activation":
            return x  # the first block starts with its own norm
        if self.placement == "post_activation":
            return self.bn1(self.activate(x))
        return self.activate(self.bn1(x))


def resnet18(norm: Norm = "batch", **options: Any) -> ResNet:
    """ResNet-18. `options` are those of `ResNet`, from num_classes on."""
    return ResNet(BasicBlock, (2, 2, 2, 2), norm, **options)


def resnet34(norm: Norm = "batch", **options: Any) -> ResNet:
    """ResNet-34. `options` are those of `ResNet`, from num_classes on."""
    return ResNet(BasicBlock, (3, 4, 6, 3), norm, **options)


def resnet50(norm: Norm = "batch", **options: Any) -> ResNet:
    """ResNet-50. `options` are those of `ResNet`, from num_classes on."""
    return ResNet(Bottleneck, (3, 4, 6, 3), norm, **options)


def resnet101(norm: Norm = "batch", **options: Any) -> ResNet:
    """ResNet-101. `options` are those of `ResNet`, from num_classes on."""
    return ResNet(Bottleneck, (3, 4, 23, 3), norm, **options)


def resnet152(norm: Norm = "batch", **options: Any) -> ResNet:
    """ResNet-152. `options` are those of `ResNet`, from num_classes on."""
    return ResNet(Bottleneck, (3, 8, 36, 3), norm, **options)


def _stem(
    stem: Stem, in_channels: int, width: int, norm: NormFactory, bias: bool | None
) -> tuple[nn.Conv2d, nn.Module]:
    if stem == "imagenet":
        convolution = conv2d(in_channels, width, kernel=7, stride=2, norm=norm, bias=bias)
        return convolution, nn.MaxPool2d(3, stride=2, padding=1)
    return conv2d(in_channels, width, kernel=3, norm=norm, bias=bias), nn.Identity()


def _stage(
    build: Callable[..., BasicBlock | Bottleneck], in_channels: int, channels: int, depth: int, stride: int
) -> nn.Sequential:
    first = build(in_channels, channels, stride)
    rest = [build(first.expansion * channels, channels, 1) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)
