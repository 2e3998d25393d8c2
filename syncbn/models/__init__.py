"""Networks that take their normalization as an argument. Imports torch and nothing else."""

from syncbn.models import inception, resnet, vit
from syncbn.models.weights import load_weights

__all__ = ["inception", "load_weights", "resnet", "vit"]
