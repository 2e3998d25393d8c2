"""Networks that take their normalization as an argument. Imports torch and nothing else."""

from syncbn.models import cnn, dcgan, deep, fcn, inception, mlp, recurrent, resnet, vit
from syncbn.models.weights import load_weights

__all__ = ["cnn", "dcgan", "deep", "fcn", "inception", "load_weights", "mlp", "recurrent", "resnet", "vit"]
