"""All kinds of nodes, registered by importing the modules."""

from tests.networks.kinds import (
    constants,
    functions,
    joins,
    layouts,
    mixers,
    modes,
    norms,
    plain,
    splits,
    weights,
    writes,
)

__all__ = [
    "constants",
    "functions",
    "joins",
    "layouts",
    "mixers",
    "modes",
    "norms",
    "plain",
    "splits",
    "weights",
    "writes",
]
