"""Options of residual networks."""

from dataclasses import dataclass
from typing import Literal

from syncbn.models.shared_options import Network
from syncbn.norm.core.options import Count, option

Stem = Literal["imagenet", "cifar"]
Placement = Literal["post_conv", "post_activation", "pre_activation"]
Activation = Literal["relu", "leaky_relu"]


@dataclass
class ResNetOptions(Network):
    """A residual network (He et al. 2016)."""

    stem: Stem = option(
        "imagenet",
        "imagenet: 7×7, stride 2, max pool; cifar: 3×3, stride 1, for small images",
        refusal="unknown stem {value!r}; allowed: 'imagenet' (7×7, stride 2, max pool), 'cifar' (3×3, stride 1)",
    )
    width: Count = option(64, "channels of the first stage; 64 is the paper's")
    zero_init_residual: bool = option(False, "whether each block starts as its shortcut")
    placement: Placement = option(
        "post_conv",
        "post_conv: conv, norm, relu; post_activation: conv, relu, norm; pre_activation: norm, relu, conv (version 2)",
        refusal="unknown placement {value!r}; allowed: {allowed}",
    )
    activation: Activation = option(
        "relu",
        "leaky_relu has slope 0.01; norm.memory=invert needs it",
        refusal="unknown activation {value!r}; allowed: {allowed}",
    )
    checkpoint_blocks: bool = option(
        False, "whether each block saves only its input, and the backward pass recomputes the rest"
    )


OPTIONS = {f"resnet{depth}": ResNetOptions for depth in (18, 34, 50, 101, 152)}
