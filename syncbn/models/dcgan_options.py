"""Options of DCGAN."""

from dataclasses import dataclass
from typing import Literal

from syncbn.models.shared_options import OfOneSize
from syncbn.norm.core.options import BelowOne, Count, option, redeclared

NormAt = Literal["paper", "generator", "discriminator", "everywhere", "nowhere"]


@dataclass
class DCGANOptions:
    """DCGAN (Radford et al. 2016): a generator and a discriminator of strided convolutions."""

    latent_size: Count = option(100, "size of the noise vector of an image")
    width: Count = option(64, "channels at the largest inner size; each halving of the size doubles them")
    base_size: Count = option(4, "height and width of the generator's first map")
    norm_at: NormAt = option(
        "paper",
        "normalized layers: paper, the same in the generator or the discriminator only, everywhere, or nowhere",
        refusal="unknown norm_at {value!r}; allowed: {allowed}",
    )
    average_decay: BelowOne = option(
        0.999,
        "weight of the averaged generator, which makes the samples, in an update",
        refusal="average_decay must be at least 0 and below 1, got {value}",
    )
    in_channels: Count | None = redeclared(OfOneSize, "in_channels", None)
    image_size: Count | tuple[Count, Count] | None = redeclared(OfOneSize, "image_size", None)
    weights: str | None = redeclared(OfOneSize, "weights", None)
    weights_key: str | None = redeclared(OfOneSize, "weights_key", None)


OPTIONS = {"DCGAN": DCGANOptions}
