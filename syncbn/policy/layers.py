"""Which layers a policy is about: torch's, this package's, and other packages'."""

from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.registry import registered_layers
from syncbn.norm.surgery.adapters import looks_like_batch_norm


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a layer is a batch normalization, or has running statistics as one has."""
    return looks_like_batch_norm(module) or has_statistics(module)


def has_statistics(module: nn.Module) -> bool:
    """Whether a layer has a `running_mean` and a `running_var`."""
    return all(isinstance(getattr(module, name, None), Tensor) for name in ("running_mean", "running_var"))


def is_norm(module: nn.Module) -> bool:
    """Whether a layer is a normalization of any kind."""
    return is_batch_norm(module) or isinstance(module, (*compat.NORMS, *registered_layers()))


def buffers_of(layer: nn.Module) -> dict[str, Tensor]:
    """A layer's own buffers by name: running statistics and the number of batches they are of."""
    return dict(layer.named_buffers(recurse=False))
