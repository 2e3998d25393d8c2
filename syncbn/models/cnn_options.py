"""Options of the small convolutional network."""

from dataclasses import dataclass

from syncbn.models.mlp_options import Activation
from syncbn.models.shared_options import Network
from syncbn.norm.core.options import Count, option


@dataclass
class CNNOptions(Network):
    """3×3 convolutions, for images of 28 to 32 pixels."""

    width: Count = option(16, "channels of the first convolution")
    depth: Count = option(4, "number of convolutions; the first of each pair halves the image")
    activation: Activation = option(
        "relu", "activation of each layer", refusal="unknown activation {value!r}; allowed: {allowed}"
    )
    norm_after_activation: bool = option(False, "whether the norm comes after the activation instead of before it")


OPTIONS = {"CNN": CNNOptions}
