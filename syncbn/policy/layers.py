"""Predicates for the layers that policies apply to: torch's, this package's, and other packages'."""

from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.registry import registered_layers
from syncbn.norm.surgery.adapters import looks_like_batch_norm


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a layer is a batch normalization, or has running statistics like one."""
    return looks_like_batch_norm(module) or has_statistics(module)


def has_statistics(module: nn.Module) -> bool:
    """Whether a layer has a `running_mean` and a `running_var`."""
    return all(isinstance(getattr(module, name, None), Tensor) for name in ("running_mean", "running_var"))


def is_norm(module: nn.Module) -> bool:
    """Whether a layer is a normalization of any kind."""
    return is_batch_norm(module) or isinstance(module, (*compat.NORMS, *registered_layers()))


def buffers_of(layer: nn.Module) -> dict[str, Tensor]:
    """A layer's own buffers by name: running statistics and their number of batches."""
    return dict(layer.named_buffers(recurse=False))


def refuse_wrapped(model: nn.Module, action: str) -> None:
    """Raise `ValueError` for a wrapped model that `syncbn.<action>` can't handle, with the remedy."""
    if compat.is_compiled(model):
        raise ValueError(
            f"the model is compiled: give the one inside, syncbn.{action}(model._orig_mod, ...), and compile the result"
        )
    for module in model.modules():
        for cls in type(module).__mro__:
            known = cls.__module__.startswith("torch.") and cls.__name__ in compat.WRAPPERS
            if not known or (module is not model and cls.__name__ in ("DataParallel", "ScriptModule")):
                continue  # nested in a model, they are ordinary parts
            if hasattr(module, "module"):
                inside = f"syncbn.{action}(model.module, ...)"
                raise ValueError(f"the model is wrapped by {cls.__name__}: give the one inside, {inside}")
            instead = compat.WRAPPERS[cls.__name__].replace("convert(model", f"{action}(model")
            raise ValueError(f"the model is a {cls.__name__}, which can't be changed; {action} first: {instead}")
