"""Predicates for the layers that policies apply to: torch's, this package's, and other packages'."""

from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from syncbn.norm.core import compat
from syncbn.norm.core.registry import registered_layers
from syncbn.norm.surgery.adapters import looks_like_batch_norm


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a layer is a batch normalization, or has running statistics like one."""
    return looks_like_batch_norm(module) or has_statistics(module)


def has_statistics(module: nn.Module) -> bool:
    """Whether a layer has a `running_mean` and a `running_var`; one compiled by itself has, but not its wrapper."""
    return not compat.is_compiled(module) and all(
        isinstance(getattr(module, name, None), Tensor) for name in ("running_mean", "running_var")
    )


def is_norm(module: nn.Module) -> bool:
    """Whether a layer is a normalization of any kind."""
    return is_batch_norm(module) or isinstance(module, (*compat.NORMS, *registered_layers()))


def affine_of(layer: nn.Module) -> dict[str, nn.Parameter]:
    """A layer's γ and β by name, or the parameters that a parametrization computes them from."""
    every = layer.named_parameters() if parametrize.is_parametrized(layer) else layer.named_parameters(recurse=False)
    return {name: value for name, value in every if "." not in name or name.startswith("parametrizations.")}


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


def refuse_uncalled(
    model: nn.Module, layers: Iterable[tuple[str, nn.Module]], action: str, otherwise: str = ", or exclude= the layer"
) -> None:
    """Raise `ValueError` for layers that are never called: a graph, which reads their tensors, has taken their place.

    Args:
        model: any model.
        layers: names and layers that a policy would act on by their calls.
        action: the policy's name, for the remedy.
        otherwise: another remedy.
    """
    parts = {path: module for path, module in model.named_modules() if _is_graph(module)}
    for name, _ in layers:
        for path, part in parts.items():
            prefix = f"{path}." if path else ""
            if not name.startswith(prefix) and name != path:
                continue
            if isinstance(part, torch.jit.ScriptModule) or not _calls(part, name.removeprefix(prefix)):
                raise ValueError(
                    f"{name or 'the layer'} is in a {type(part).__name__}, a graph that computes without calling it: "
                    f"{action} the model before it is scripted, traced or exported{otherwise}"
                )


def _is_graph(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) or isinstance(getattr(module, "graph", None), fx.Graph)


def _calls(module: nn.Module, name: str) -> bool:
    """Whether a graph calls a module, or one that it is in."""
    graph: fx.Graph = module.graph  # type: ignore[assignment]
    called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    return any(name == target or name.startswith(f"{target}.") for target in called)
