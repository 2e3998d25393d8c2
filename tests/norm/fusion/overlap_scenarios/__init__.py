"""Scenarios whose gradients must be the same bits with and without overlap; importing them registers them."""

from tests.norm.fusion.overlap_scenarios import (
    backwards as backwards,
)
from tests.norm.fusion.overlap_scenarios import (
    checkpointing as checkpointing,
)
from tests.norm.fusion.overlap_scenarios import (
    hooks as hooks,
)
from tests.norm.fusion.overlap_scenarios import (
    layers as layers,
)
from tests.norm.fusion.overlap_scenarios import (
    repeats as repeats,
)
from tests.norm.fusion.overlap_scenarios import (
    variants as variants,
)
from tests.norm.fusion.overlap_scenarios import (
    weights as weights,
)
from tests.norm.fusion.overlap_scenarios import (
    wrappers as wrappers,
)
from tests.norm.fusion.overlap_scenarios.registry import SCENARIOS as SCENARIOS
