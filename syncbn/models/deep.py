"""Residual and plain deep networks for small images (He et al. 2015, section 4.2)."""

import torch
from torch import Tensor, nn

from syncbn.models.common import Norm, check_images, check_sizes, conv2d, global_average, initialize_convolutions
from syncbn.models.deep_options import DeepNetOptions as Options
from syncbn.models.residual import BasicBlock
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.registry import NormFactory, norm_layer
from syncbn.norm.surgery.feeding import attach_norms


class DeepNet(nn.Module):
    """`depth` = 6n + 2 layers: a 3×3 convolution, three stages of n blocks, global average, linear classifier.

    A block is two 3×3 convolutions, each with a norm and a ReLU, with a shortcut in the residual network and none in
    the plain one. Stages have width·(1, 2, 4) channels; the second and the third halve the image.

    Input (N, in_channels, H, W) of a floating dtype, output (N, num_classes) logits. Train and eval differ only in the
    norms. Where a shortcut changes the shape it is a 1×1 convolution (the paper's option B).

    Args:
        norm: a name of `syncbn.available_norms()`, or a function of the number of channels.
        num_classes: number of logits.
        in_channels: channels of the images.
        depth: number of layers: 8, 14, 20, ..., 110, ...
        width: channels of the first stage; 16 is the paper's.
        residual: whether there are shortcuts.

    Raises:
        ValueError: an invalid depth, an unknown norm, a size below 1, or, in the forward pass, an input of the wrong
            shape.
        TypeError: in the forward pass, an input of an integer dtype.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385.
    """

    head = "fc"  # reinitialized by `load_weights` for a different number of classes

    def __init__(
        self,
        norm: Norm = "batch",
        num_classes: int = 10,
        in_channels: int = 3,
        depth: int = Options.depth,
        width: int = Options.width,
        residual: bool = Options.residual,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels)
        check_arguments(Options, locals())
        blocks, rest = divmod(depth - 2, 6)
        if rest:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ..., 56, ..., 110), got {depth}")
        norm = norm_layer(norm)
        block = BasicBlock if residual else PlainBlock
        self.in_channels = in_channels
        self.conv1 = conv2d(in_channels, width, kernel=3, norm=norm)
        self.bn1 = norm(width)
        stages: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for i in range(blocks):
                stages.append(block(channels, width * 2**stage, 2 if stage and i == 0 else 1, norm))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, num_classes)
        initialize_convolutions(self)
        attach_norms(self)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_channels)
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(global_average(self.blocks(x)))


class PlainBlock(nn.Module):
    """Two 3×3 convolutions, each with a norm and a ReLU: (N, in, H, W) -> (N, channels, H/stride, W/stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv1 = conv2d(in_channels, channels, kernel=3, stride=stride, norm=norm)
        self.bn1 = norm(channels)
        self.conv2 = conv2d(channels, channels, kernel=3, norm=norm)
        self.bn2 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)))
