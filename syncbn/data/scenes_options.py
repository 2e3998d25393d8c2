"""Options of the scenes of digits."""

from dataclasses import dataclass
from typing import Annotated

from syncbn.data.shared_options import GlobalBatches
from syncbn.norm.core.options import Count, NotNegative, Range, option, redeclared


@dataclass
class ScenesOptions(GlobalBatches):
    """Scenes of scikit-learn's digits at random places and sizes, with a label for each pixel."""

    batch_size: Count = redeclared(GlobalBatches, "batch_size", 2)
    eval_batch_size: Count = redeclared(GlobalBatches, "eval_batch_size", 32)
    size: Count = option(32, "height and width in pixels")
    num_train: Count = option(400, "number of scenes in a training epoch; each epoch has new ones")
    num_val: Count = option(100, "number of validation scenes")
    num_test: Count = option(200, "number of test scenes")
    max_digits: Count = option(4, "largest number of digits in a scene")
    max_scale: Annotated[float, Range(low=1)] = option(2.0, "largest scale of the 8×8 digits; the smallest is 1")
    noise: NotNegative = option(0.1, "standard deviation of the noise on each pixel")


OPTIONS = {"ScenesDataModule": ScenesOptions}
