"""Which layers a policy is about, whoever wrote them."""

from torch import Tensor, nn

from syncbn.norm.batch import BatchNorm
from syncbn.norm.core import compat
from syncbn.norm.surgery.adapters import looks_like_batch_norm
from syncbn.norm.sync import SyncBatchNorm


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a layer is a batch normalization, or has running statistics as one has."""
    return looks_like_batch_norm(module) or has_statistics(module)


def has_statistics(module: nn.Module) -> bool:
    """Whether a layer has a `running_mean` and a `running_var`."""
    return all(isinstance(getattr(module, name, None), Tensor) for name in ("running_mean", "running_var"))


def is_plain(module: nn.Module) -> bool:
    """Whether a layer in training normalizes by its batch alone, and all it has is one number a channel."""
    foreign = not type(module).__module__.startswith("syncbn.norm.")
    return isinstance(module, compat.BatchNormBase) and (foreign or type(module) in (BatchNorm, SyncBatchNorm))


def is_norm(module: nn.Module) -> bool:
    """Whether a layer is a normalization of any kind."""
    ours = type(module).__module__.startswith("syncbn.norm.")
    return ours or is_batch_norm(module) or isinstance(module, compat.NORMS)


def buffers_of(layer: nn.Module) -> dict[str, Tensor]:
    """A layer's own buffers by name: running statistics and the number of batches they are of."""
    return dict(layer.named_buffers(recurse=False))
