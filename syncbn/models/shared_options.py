"""Options shared by networks, each declared once."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option


@dataclass
class Network:
    """Options of every network."""

    num_classes: Count | None = option(None, "number of logits; null: the data's")
    in_channels: Count | None = option(None, "channels of the images; null: the data's")
    weights: str | None = option(None, "a .pth, .pt, .ckpt or .safetensors file to start from")
    weights_key: str | None = option(
        None, "which state dict of that file, state_dict_ema for example; null: the usual one"
    )


@dataclass
class OfOneSize(Network):
    """Options of networks built for images of one size."""

    image_size: Count | tuple[Count, Count] | None = option(
        None, "height and width of the images, in pixels; null: the data's"
    )
