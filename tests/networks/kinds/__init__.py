"""All kinds of nodes; importing the modules registers them."""

from tests.networks.kinds import (
    constants,
    functions,
    joins,
    layouts,
    mixers,
    modes,
    norms,
    plain,
    weights,
    writes,
)

__all__ = ["constants", "functions", "joins", "layouts", "mixers", "modes", "norms", "plain", "weights", "writes"]
