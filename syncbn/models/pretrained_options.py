"""The options of other packages' networks."""

from dataclasses import dataclass

from syncbn.models.shared_options import OfOneSize
from syncbn.norm.core.options import option


@dataclass
class PretrainedOptions(OfOneSize):
    """A network of another package, its batch norms converted."""

    architecture: str = option("resnet18", "its name in timm.list_models() or torchvision.models.list_models()")
    pretrained: bool = option(True, "whether to fetch its weights, once, from their authors")


OPTIONS = {"from_timm": PretrainedOptions, "from_torchvision": PretrainedOptions}
