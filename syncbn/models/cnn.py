"""A small convolutional network for images of 28 to 32 pixels."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from syncbn.models.cnn_options import CNNOptions as Options
from syncbn.models.common import Norm, check_images, check_sizes, conv2d, global_average, initialize_convolutions
from syncbn.models.mlp_options import Activation
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.registry import norm_layer
from syncbn.norm.surgery.feeding import attach_norms

_ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


class CNN(nn.Module):
    """`depth` 3×3 convolutions, y = g(norm(conv(x))), global average, linear classifier.

    Convolutions have width·(1, 1, 2, 2, 4, 4, ...) channels; the first of each pair halves the image. A convolution has
    a bias only where the norm after it has none. Weights start normal, with the standard deviation that preserves the
    gradient's variance through g (He et al. 2015), biases at 0.

    Input (N, in_channels, H, W) of a floating dtype, output (N, num_classes) logits. Train and eval differ only in the
    norms.

    Args:
        norm: a name of `syncbn.available_norms()`, or a function of the number of channels.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: channels of the first convolution.
        depth: number of convolutions.
        activation: g, "relu", "sigmoid" or "tanh".
        norm_after_activation: y = norm(g(conv(x))) instead.

    Raises:
        ValueError: an unknown norm or activation, a size below 1, or, in the forward pass, an input of the wrong shape.
        TypeError: in the forward pass, an input of an integer dtype.
    """

    head = "fc"  # reinitialized by `load_weights` for a different number of classes

    def __init__(
        self,
        norm: Norm = "batch",
        num_classes: int = 10,
        in_channels: int = 1,
        width: int = Options.width,
        depth: int = Options.depth,
        activation: Activation = Options.activation,
        norm_after_activation: bool = Options.norm_after_activation,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels)
        check_arguments(Options, locals())
        norm = norm_layer(norm)
        self.in_channels = in_channels
        self.activation = activation
        self.norm_after_activation = norm_after_activation
        widths = [in_channels, *(width * 2 ** (i // 2) for i in range(depth))]
        bias = True if norm_after_activation else None  # no norm cancels a bias before an activation
        self.convs = nn.ModuleList(
            conv2d(inputs, outputs, kernel=3, stride=2 if i % 2 == 0 else 1, norm=norm, bias=bias)
            for i, (inputs, outputs) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(norm(channels) for channels in widths[1:])
        self.fc = nn.Linear(widths[-1], num_classes)
        initialize_convolutions(self, activation)
        attach_norms(self)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_channels)
        act = _ACTIVATIONS[self.activation]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = conv(x)
            x = norm(act(y)) if self.norm_after_activation else act(norm(y))
        return self.fc(global_average(x))
