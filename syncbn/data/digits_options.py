"""Options of the digits."""

from dataclasses import dataclass
from typing import Annotated

from syncbn.data.shared_options import OfClasses
from syncbn.norm.core.options import BelowOne, Range, Share, option


@dataclass
class DigitsOptions(OfClasses):
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels."""

    val_fraction: Share = option(0.2, "part of the digits held out for validation")
    test_fraction: Share = option(0.2, "part of the digits held out for the test")
    augment: bool = option(True, "whether to shift, rotate and scale training images slightly")
    max_shift: Annotated[float, Range(low=0, below=8)] = option(
        1.0,
        "largest shift in pixels, along each axis",
        refusal="max_shift (pixels) must be at least 0 and below 8, got {value}",
    )
    max_rotation: Annotated[float, Range(low=0, below=180)] = option(
        10.0,
        "largest rotation in degrees, in both directions",
        refusal="max_rotation (degrees) must be at least 0 and below 180, got {value}",
    )
    max_scale: BelowOne = option(0.1, "largest relative change of size, up or down")
    corruptions: dict[str, float] = option(
        {}, "a shifted domain: contrast, brightness, inversion, blur, rotation, noise, each with an amount"
    )


OPTIONS = {"DigitsDataModule": DigitsOptions}
