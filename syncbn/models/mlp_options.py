"""Options of fully connected networks."""

import math
from dataclasses import dataclass
from typing import Literal

from syncbn.models.shared_options import OfOneSize
from syncbn.norm.core.options import BelowOne, Count, Positive, option

Activation = Literal["relu", "sigmoid", "tanh"]


@dataclass
class MLPOptions(OfOneSize):
    """A fully connected network."""

    hidden_size: Count = option(64, "features of each layer")
    depth: Count = option(3, "hidden layers")
    activation: Activation = option(
        "relu", "activation of each layer", refusal="unknown activation {value!r}; allowed: {allowed}"
    )
    norm_after_activation: bool = option(False, "whether the norm comes after the activation instead of before it")
    dropout: BelowOne = option(0.0, "share of the features that training drops")
    init_gain: Positive = option(
        math.sqrt(2),
        "gain: weights start with standard deviation gain / sqrt(inputs); sqrt(2) preserves the variance through ReLUs",
        refusal="init_gain must be greater than 0, got {value}",
    )


OPTIONS = {"MLP": MLPOptions}
