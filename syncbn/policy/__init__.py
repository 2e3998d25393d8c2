"""What becomes of a network's statistics later. Imports torch and nothing else."""

from syncbn.policy.freeze import freeze, unfreeze

__all__ = ["freeze", "unfreeze"]
