"""Networks that take their normalization as an argument. Imports torch and nothing else."""

from syncbn.models import resnet

__all__ = ["resnet"]
