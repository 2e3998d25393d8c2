"""The options of DCGAN."""

from dataclasses import dataclass
from typing import Literal

from syncbn.models.shared_options import OfOneSize
from syncbn.norm.core.options import BelowOne, Count, option, redeclared

NormAt = Literal["paper", "generator", "discriminator", "everywhere", "nowhere"]


@dataclass
class DCGANOptions:
    """DCGAN (Radford et al. 2016): a generator and a discriminator of strided convolutions."""

    latent_size: Count = option(100, "numbers of noise for an image")
    width: Count = option(64, "channels at the largest inner size; each halving of the size doubles them")
    base_size: Count = option(4, "height and width where the generator starts")
    norm_at: NormAt = option(
        "paper",
        "which layers are normalized: paper, those of them in the generator or the discriminator alone, everywhere, or "
        "nowhere",
        refusal="unknown norm_at {value!r}; allowed: {allowed}",
    )
    average_decay: BelowOne = option(
        0.999,
        "part of the averaged generator, which makes the samples, that stays at an update",
        refusal="average_decay must be at least 0 and below 1, got {value}",
    )
    in_channels: Count | None = redeclared(OfOneSize, "in_channels", None)
    image_size: Count | tuple[Count, Count] | None = redeclared(OfOneSize, "image_size", None)
    weights: str | None = redeclared(OfOneSize, "weights", None)


OPTIONS = {"DCGAN": DCGANOptions}
