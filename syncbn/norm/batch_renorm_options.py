"""Options of `batch_renorm`."""

from dataclasses import dataclass
from typing import Annotated

from syncbn.norm.core.options import Natural, NotNegative, Range, option
from syncbn.norm.core.shared_options import Running, Synchronized


@dataclass
class BatchRenormOptions(Synchronized, Running):
    """Batch renormalization (Ioffe 2017): batch moments, corrected towards the running ones within limits."""

    r_max: Annotated[float, Range(low=1)] = option(
        3.0,
        "final limit of the scale's correction; 1 for none",
        refusal="r_max must be at least 1, got {value}; 1 is BN, where d_max is 0",
    )
    d_max: NotNegative = option(
        5.0,
        "final limit of the mean's correction; 0 for none",
        refusal="r_max must be at least 1 and d_max at least 0, got d_max={value}; 1 and 0 are BN",
    )
    start_step: Natural = option(5_000, "optimizer steps of plain batch normalization")
    r_max_step: Natural = option(
        40_000, "step from which the scale's limit is r_max; the paper's value, for 100 thousand steps"
    )
    d_max_step: Natural = option(25_000, "step from which the mean's limit is d_max")


OPTIONS = {"batch_renorm": BatchRenormOptions}
