"""Options of BN-Inception."""

from dataclasses import dataclass
from typing import Annotated, Literal

from syncbn.models.shared_options import Network
from syncbn.norm.core.options import BelowOne, Range, option, redeclared

Activation = Literal["relu", "sigmoid"]
Width = Annotated[int, Range(low=2)]


@dataclass
class InceptionOptions(Network):
    """BN-Inception (Ioffe & Szegedy 2015), for images of 224×224."""

    width: Width = option(
        64,
        "channels of the first layer; all others scale with it; 64 is the paper's",
        refusal="width must be at least 2, got {value}; the narrowest branch has half of it",
    )
    activation: Activation = option(
        "relu",
        "activation of each layer; sigmoid trains only with a norm",
        refusal="unknown activation {value!r}; allowed: {allowed}",
    )
    dropout: BelowOne = option(0.0, "share of the features that training drops before the classifier")
    local_response_norm: bool = option(
        False, "whether to use the baseline's local response normalization, with norm=none"
    )


@dataclass
class SmallInceptionOptions(InceptionOptions):
    """Five of BN-Inception's blocks after a 3×3 stem, for images of 8 to 32 pixels."""

    width: Width = redeclared(InceptionOptions, "width", 16)


OPTIONS = {"bn_inception": InceptionOptions, "bn_inception_small": SmallInceptionOptions}
