"""Options of `MomentumSchedule`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from syncbn.norm.core.options import Fraction, Range, option

_MOMENTUM = "momentum must be in [0, 1], got {value}"


@dataclass
class MomentumScheduleOptions:
    """Changes the momentum of running statistics from one value to another."""

    start: Fraction = option(0.1, "first momentum, in torch's convention; Keras's 0.9", refusal=_MOMENTUM)
    end: Fraction = option(0.01, "last momentum", refusal=_MOMENTUM)
    shape: Literal["linear", "cosine"] = option("cosine", "shape of the curve between them")
    fraction: Annotated[float, Range(above=0, high=1)] = option(
        1.0,
        "share of the training's steps until the last momentum is reached",
        refusal="fraction must be above 0 and at most 1, got {value}",
    )


OPTIONS = {"MomentumSchedule": MomentumScheduleOptions}
