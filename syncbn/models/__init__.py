"""Networks that take their normalization as an argument. Imports torch and nothing else."""

from syncbn.models import resnet
from syncbn.models.weights import load_weights

__all__ = ["load_weights", "resnet"]
