"""Networks that take their normalization as an argument. Imports torch and nothing else."""

from syncbn.models import dcgan, fcn, inception, recurrent, resnet, vit
from syncbn.models.weights import load_weights

__all__ = ["dcgan", "fcn", "inception", "load_weights", "recurrent", "resnet", "vit"]
