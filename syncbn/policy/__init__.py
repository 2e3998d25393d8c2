"""What becomes of a network's statistics later. Imports torch and nothing else."""

from syncbn.policy.adapt import Tent, adapt, use_batch_statistics, use_running_statistics
from syncbn.policy.freeze import freeze, unfreeze
from syncbn.policy.recalibrate import recalibrate

__all__ = [
    "Tent",
    "adapt",
    "freeze",
    "recalibrate",
    "unfreeze",
    "use_batch_statistics",
    "use_running_statistics",
]
