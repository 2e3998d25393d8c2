"""Options of vision transformers."""

from dataclasses import dataclass

from syncbn.models.shared_options import OfOneSize
from syncbn.norm.core.options import BelowOne, Count, option


@dataclass
class ViTOptions(OfOneSize):
    """A small vision transformer."""

    patch_size: Count = option(4, "side of a patch in pixels; must divide the image")
    dim: Count = option(64, "channels of a token")
    depth: Count = option(4, "number of blocks")
    heads: Count = option(4, "number of attention heads; must divide dim")
    dropout: BelowOne = option(0.0, "share of a block's output that training drops")


OPTIONS = {"vit": ViTOptions, "llama_vit": ViTOptions}
