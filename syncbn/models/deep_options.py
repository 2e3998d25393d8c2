"""Options of the deep networks for small images."""

from dataclasses import dataclass
from typing import Annotated

from syncbn.models.shared_options import Network
from syncbn.norm.core.options import Count, Range, option


@dataclass
class DeepNetOptions(Network):
    """A network of 6n + 2 layers for small images (He et al. 2015, section 4.2)."""

    depth: Annotated[int, Range(low=8)] = option(
        20,
        "number of layers: 8, 14, 20, ..., 56, ..., 110",
        refusal="depth must be 6n + 2 (8, 14, 20, ..., 56, ..., 110), got {value}",
    )
    width: Count = option(16, "channels of the first stage; 16 is the paper's")
    residual: bool = option(True, "whether there are shortcuts")


OPTIONS = {"DeepNet": DeepNetOptions}
