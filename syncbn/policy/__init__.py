"""What becomes of a network's statistics later. Imports torch and nothing else."""

from syncbn.policy.freeze import freeze, unfreeze
from syncbn.policy.recalibrate import recalibrate

__all__ = ["freeze", "recalibrate", "unfreeze"]
