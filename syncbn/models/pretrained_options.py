"""Options of networks from other packages."""

from dataclasses import dataclass

from syncbn.models.shared_options import OfOneSize
from syncbn.norm.core.options import option


@dataclass
class PretrainedOptions(OfOneSize):
    """A network of another package with converted batch norms."""

    architecture: str = option("resnet18", "a name of timm.list_models() or torchvision.models.list_models()")
    pretrained: bool = option(True, "whether to download the published weights, once")


OPTIONS = {"from_timm": PretrainedOptions, "from_torchvision": PretrainedOptions}
