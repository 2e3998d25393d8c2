"""The options of the scenes of digits."""

from dataclasses import dataclass
from typing import Annotated

from syncbn.data.shared_options import GlobalBatches
from syncbn.norm.core.options import Count, NotNegative, Range, option, redeclared


@dataclass
class ScenesOptions(GlobalBatches):
    """Canvases of scikit-learn's digits at random places and sizes, a label for each pixel."""

    batch_size: Count = redeclared(GlobalBatches, "batch_size", 2)
    eval_batch_size: Count = redeclared(GlobalBatches, "eval_batch_size", 32)
    size: Count = option(32, "height and width in pixels")
    num_train: Count = option(400, "scenes in an epoch; each epoch has new ones")
    num_val: Count = option(100, "scenes in validation")
    num_test: Count = option(200, "scenes in the test")
    max_digits: Count = option(4, "digits in a scene: 1 to this many")
    max_scale: Annotated[float, Range(low=1)] = option(2.0, "digits are enlarged from their 8 pixels by 1 to this")
    noise: NotNegative = option(0.1, "deviation of the noise on every pixel")


OPTIONS = {"ScenesDataModule": ScenesOptions}
