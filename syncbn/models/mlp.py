"""Fully connected networks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from syncbn.models.common import Norm, check_images, check_sizes
from syncbn.models.mlp_options import Activation
from syncbn.models.mlp_options import MLPOptions as Options
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.registry import has_bias, norm_layer
from syncbn.norm.surgery.feeding import attach_norms

_ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


class MLP(nn.Module):
    """`depth` layers y = dropout(g(norm(Wx))) and a linear classifier, over the flattened pixels.

    Input (N, in_channels, *image_size) of a floating dtype, output (N, num_classes) logits. A layer has a bias only
    where the norm after it has none. Weights start normal with standard deviation init_gain / sqrt(inputs), biases at
    0. Train and eval differ in the norms and in dropout.

    Args:
        norm: a name of `syncbn.available_norms()`, or a function of the number of channels.
        num_classes: number of logits.
        in_channels: channels of the images.
        image_size: height and width of the images in pixels; one number for a square.
        hidden_size: features of each layer.
        depth: hidden layers.
        activation: g, "relu", "sigmoid" or "tanh".
        norm_after_activation: y = dropout(norm(g(Wx + b))) instead.
        dropout: share of the features that training drops.
        init_gain: gain of the hidden layers' weights; sqrt(2) preserves the variance through ReLUs (He et al. 2015).

    Raises:
        ValueError: an unknown norm or activation, a size below 1, a gain that isn't positive, or, in the forward pass,
            an input of another shape.
        TypeError: in the forward pass, an input of an integer dtype.
    """

    head = "fc"  # reinitialized by `load_weights` for a different number of classes

    def __init__(
        self,
        norm: Norm = "batch",
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int | Sequence[int] = 28,
        hidden_size: int = Options.hidden_size,
        depth: int = Options.depth,
        activation: Activation = Options.activation,
        norm_after_activation: bool = Options.norm_after_activation,
        dropout: float = Options.dropout,
        init_gain: float = Options.init_gain,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=min(height, width))
        check_arguments(Options, locals())
        norm = norm_layer(norm)
        self.in_channels = in_channels
        self.activation = activation
        self.norm_after_activation = norm_after_activation
        widths = [in_channels * height * width, *[hidden_size] * depth]
        bias = norm_after_activation or not has_bias(norm, hidden_size)  # no norm cancels a bias before an activation
        linears = [nn.Linear(inputs, hidden_size, bias=bias) for inputs in widths[:-1]]
        for linear in linears:
            nn.init.normal_(linear.weight, std=init_gain / math.sqrt(linear.in_features))
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.linears = nn.ModuleList(linears)
        self.norms = nn.ModuleList(norm(hidden_size) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden_size, num_classes)
        attach_norms(self)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_channels)
        act = _ACTIVATIONS[self.activation]
        x = x.flatten(1)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            y = linear(x)
            x = self.dropout(norm(act(y)) if self.norm_after_activation else act(norm(y)))
        return self.fc(x)
