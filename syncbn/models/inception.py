"""BN-Inception, the network of the batch normalization paper, in the paper's size and in one for small images."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from syncbn.models.common import (
    Norm,
    check_images,
    check_sizes,
    conv2d,
    global_average,
    initialize_convolutions,
)
from syncbn.models.inception_options import Activation, SmallInceptionOptions
from syncbn.models.inception_options import InceptionOptions as Options
from syncbn.models.resnet_options import Stem
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.registry import NormFactory, norm_layer
from syncbn.norm.surgery.feeding import attach_norms

_ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid}


class InceptionRow(NamedTuple):
    """A row of the paper's Figure 5: output channels of the branches; with stride 2, no 1×1 and no pool projection."""

    one: int
    three_reduce: int
    three: int
    double_reduce: int
    double: int
    pool: Literal["avg", "max"]
    projection: int
    stride: int = 1


PAPER = {
    "3a": InceptionRow(64, 64, 64, 64, 96, "avg", 32),
    "3b": InceptionRow(64, 64, 96, 64, 96, "avg", 64),
    "3c": InceptionRow(0, 128, 160, 64, 96, "max", 0, stride=2),
    "4a": InceptionRow(224, 64, 96, 96, 128, "avg", 128),
    "4b": InceptionRow(192, 96, 128, 96, 128, "avg", 128),
    "4c": InceptionRow(160, 128, 160, 128, 160, "avg", 96),
    "4d": InceptionRow(96, 128, 192, 160, 192, "avg", 96),
    "4e": InceptionRow(0, 128, 192, 192, 256, "max", 0, stride=2),
    "5a": InceptionRow(352, 192, 320, 160, 224, "avg", 128),
    "5b": InceptionRow(352, 192, 320, 192, 224, "max", 128),
}
SMALL = {name: PAPER[name] for name in ("3a", "3b", "3c", "4a", "4b")}


class ConvNorm(nn.Module):
    """y = g(norm(Wx)): the paper's placement, before the nonlinearity g. (N, in, H, W) -> (N, out, H/s, W/s)."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, norm: NormFactory, activation: Activation, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = conv2d(in_channels, channels, kernel=kernel, stride=stride, norm=norm)
        self.bn = norm(channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return _ACTIVATIONS[self.activation](self.bn(self.conv(x)))


class InceptionBlock(nn.Module):
    """Branches of 1×1, 3×3, two 3×3 and a pool, concatenated. (N, in, H, W) -> (N, out, H/s, W/s)."""

    def __init__(self, in_channels: int, row: InceptionRow, norm: NormFactory, activation: Activation) -> None:
        super().__init__()

        def layer(inputs: int, channels: int, kernel: int, stride: int = 1) -> ConvNorm:
            return ConvNorm(inputs, channels, kernel, norm, activation, stride)

        self.one = layer(in_channels, row.one, 1) if row.one else None
        self.three = nn.Sequential(
            layer(in_channels, row.three_reduce, 1), layer(row.three_reduce, row.three, 3, row.stride)
        )
        self.double_three = nn.Sequential(
            layer(in_channels, row.double_reduce, 1),
            layer(row.double_reduce, row.double, 3),
            layer(row.double, row.double, 3, row.stride),
        )
        pool = nn.MaxPool2d if row.pool == "max" else nn.AvgPool2d
        self.pool = pool(3, stride=row.stride, padding=1)
        self.projection = layer(in_channels, row.projection, 1) if row.projection else None
        self.out_channels = row.one + row.three + row.double + (row.projection or in_channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x)
        branches = [
            self.three(x),
            self.double_three(x),
            pooled if self.projection is None else self.projection(pooled),
        ]
        return torch.cat(branches if self.one is None else [self.one(x), *branches], dim=1)


class BNInception(nn.Module):
    """Inception with a norm before each nonlinearity: stem, inception blocks, global average, dropout, classifier.

    Input (N, in_channels, H, W) of a floating dtype, output (N, num_classes) logits. A convolution has a bias only
    where the norm after it has none. Train and eval differ in the norm layers and in dropout.

    The variants of the paper's Figures 2 and 3 are choices of norm, activation, dropout, local response normalization
    and learning rate, in `conf/experiment/inception_*.yaml`. Auxiliary classifiers are left out, as in Figure 5.

    Args:
        rows: the blocks: `PAPER` or `SMALL`.
        norm: a name of `syncbn.available_norms()`, or a function of the number of channels.
        num_classes: number of logits.
        in_channels: channels of the input images.
        stem: "imagenet" (separable 7×7 of depth multiplier 8, 3×3, two max pools: 224 -> 28 pixels) or "cifar" (3×3).
        width: channels of the stem's first layer; all others scale with it; 64 is the paper's.
        activation: g, "relu" or "sigmoid".
        dropout: share of the features that training drops before the classifier.
        local_response_norm: local response normalization around the stem's second convolution, as in the baseline that
            has no other norm; "imagenet" stem, or after the only convolution of "cifar".

    Raises:
        ValueError: an unknown norm, stem or activation, a size below 1, a width that leaves a branch without channels,
            or, in the forward pass, an input of the wrong shape.
        TypeError: in the forward pass, an input of an integer dtype.

    Source: Ioffe & Szegedy, Batch Normalization, ICML 2015, https://arxiv.org/abs/1502.03167, section 4.2 and Figure 5.
    """

    head = "fc"  # reinitialized by `load_weights` for a different number of classes

    def __init__(
        self,
        rows: dict[str, InceptionRow],
        norm: Norm = "batch",
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: Stem = "imagenet",
        width: int = Options.width,
        activation: Activation = Options.activation,
        dropout: float = Options.dropout,
        local_response_norm: bool = Options.local_response_norm,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels)
        check_arguments(Options, locals())
        norm = norm_layer(norm)
        self.in_channels = in_channels

        self.stem = _stem(stem, in_channels, width, norm, activation, local_response_norm)
        channels = 3 * width if stem == "imagenet" else width
        self.blocks = nn.ModuleDict()
        for name, row in rows.items():
            block = InceptionBlock(channels, _scaled(row, width), norm, activation)
            self.blocks[name] = block
            channels = block.out_channels
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        initialize_convolutions(self, activation)
        attach_norms(self)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_channels)
        x = self.stem(x)
        for block in self.blocks.values():
            x = block(x)
        return self.fc(self.dropout(global_average(x)))


def bn_inception(
    norm: Norm = "batch",
    num_classes: int = 1000,
    in_channels: int = 3,
    width: int = Options.width,
    activation: Activation = Options.activation,
    dropout: float = Options.dropout,
    local_response_norm: bool = Options.local_response_norm,
) -> BNInception:
    """BN-Inception of the paper's Figure 5, for images of 224×224 pixels. Options as for `BNInception`."""
    return BNInception(
        PAPER, norm, num_classes, in_channels, "imagenet", width, activation, dropout, local_response_norm
    )


def bn_inception_small(
    norm: Norm = "batch",
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = SmallInceptionOptions.width,
    activation: Activation = SmallInceptionOptions.activation,
    dropout: float = SmallInceptionOptions.dropout,
    local_response_norm: bool = SmallInceptionOptions.local_response_norm,
) -> BNInception:
    """Blocks 3a to 4b after a 3×3 stem, for images of 8 to 32 pixels. Options as for `BNInception`."""
    return BNInception(SMALL, norm, num_classes, in_channels, "cifar", width, activation, dropout, local_response_norm)


def _stem(
    stem: str, in_channels: int, width: int, norm: NormFactory, activation: Activation, local_response_norm: bool
) -> nn.Sequential:
    lrn = [nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)] if local_response_norm else []
    if stem == "cifar":
        return nn.Sequential(ConvNorm(in_channels, width, 3, norm, activation), *lrn)
    if stem == "imagenet":
        depthwise = nn.Conv2d(in_channels, 8 * in_channels, 7, stride=2, padding=3, groups=in_channels, bias=False)
        return nn.Sequential(
            depthwise,
            ConvNorm(8 * in_channels, width, 1, norm, activation),
            nn.MaxPool2d(3, stride=2, padding=1),
            *lrn,
            ConvNorm(width, width, 1, norm, activation),
            ConvNorm(width, 3 * width, 3, norm, activation),
            *lrn,
            nn.MaxPool2d(3, stride=2, padding=1),
        )
    raise ValueError(f"unknown stem {stem!r}; allowed: 'imagenet', 'cifar'")


def _scaled(row: InceptionRow, width: int) -> InceptionRow:
    channels = {
        name: getattr(row, name) * width // 64
        for name in ("one", "three_reduce", "three", "double_reduce", "double", "projection")
    }
    return row._replace(**channels)
