"""Options of `moving_average`."""

from dataclasses import dataclass
from typing import Annotated

from syncbn.norm.core.options import Count, Fraction, Natural, Range, option, redeclared
from syncbn.norm.core.shared_options import Running, Synchronized


@dataclass
class MovingAverageOptions(Synchronized, Running):
    """Moving average batch normalization (MABN, Yan et al. 2020): windowed moments both ways, centred filters."""

    window: Count = option(16, "iterations to average over")
    warmup: Natural = option(100, "first iterations that use the batch's own statistics")
    r_max: Annotated[float, Range(low=1)] = option(
        5.0,
        "limit of the correction towards the running statistics; 1 for none",
        refusal="r_max must be at least 1, got {value}; 1 leaves r out",
    )
    r_start: Natural = option(1_000, "first iterations without that correction")
    centre: bool = option(True, "whether the filters of the preceding convolution are centred")
    momentum: Fraction | None = redeclared(Running, "momentum", 0.02)


OPTIONS = {"moving_average": MovingAverageOptions}
