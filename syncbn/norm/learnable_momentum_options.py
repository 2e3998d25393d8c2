"""Options of `learnable_momentum`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Share, option, redeclared
from syncbn.norm.core.shared_options import Running, Synchronized


@dataclass
class LearnableMomentumOptions(Synchronized, Running):
    """Batch normalization by running statistics in training too, with a learned momentum (after Yong et al. 2020)."""

    momentum: Share = option(
        0.1,
        "initial momentum",
        refusal="a momentum that is learned starts between 0 and 1, got {value}; 0.1 is a usual value",
    )
    keras_momentum: Share | None = redeclared(Running, "keras_momentum", None)


OPTIONS = {"learnable_momentum": LearnableMomentumOptions}
