"""`torch.nn.BatchNorm1d`, `2d` or `3d` in the place of any batch norm: which of them, and what it is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from syncbn.norm.core.capabilities import evaluates_as_batch_norm
from syncbn.norm.core.tracking import TrackingNorm
from syncbn.norm.surgery.adapters import looks_like_batch_norm
from syncbn.norm.surgery.forward import Example, Forward
from syncbn.norm.surgery.graph import Call, Graph
from syncbn.norm.surgery.record import record
from syncbn.norm.surgery.symbolic import symbolic

NAME = "torch"
_OF_DIMENSIONS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Modules whose output has the dimensions of their input, whatever these are.
_SHAPELESS = (nn.Identity, nn.Dropout, nn.AlphaDropout, *(getattr(nn, name) for name in nn.modules.activation.__all__))


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is torch's own, or of a subclass, and knows its dimensions."""
    return isinstance(layer, _PLAIN) and not isinstance(layer, TrackingNorm)


def plain_classes(
    model: nn.Module, layers: dict[nn.Module, str], example_input: Example | None, forward: Forward | None
) -> dict[nn.Module, Any]:
    """The class of torch that each layer becomes.

    By the number of dimensions that it was converted from; else by those of what it is called with, in one recorded
    forward pass over `example_input`; else by the convolution, the pooling or the linear layer that feeds it.

    Args:
        model: where the layers are.
        layers: batch norms, with their names.
        example_input: see `syncbn.convert`.
        forward: likewise.

    Raises:
        ValueError: layers that aren't batch norms in evaluation, or of which the dimensions can't be told, all named.
    """
    refused = [
        f"{name} ({type(layer).__name__}) isn't a batch norm in evaluation"
        for layer, name in layers.items()
        if not evaluates_as_batch_norm(layer)
    ]
    found = {layer: _OF_DIMENSIONS[dims[0]] for layer in layers if (dims := dimensions_of(layer)) is not None}
    waiting = [layer for layer in layers if layer not in found and evaluates_as_batch_norm(layer)]
    if waiting and model in waiting and example_input is None:
        refused.append("the layer's number of dimensions is unknown: give an example_input")
    elif waiting:
        graph = _symbolic(model) if example_input is None else record(model, example_input, forward)
        for layer in waiting:
            calls = graph.calls_of(layer) if graph is not None else []
            classes = {_class_of(call, graph) for call in calls if graph is not None}
            if len(classes) == 1 and None not in classes:
                found[layer] = classes.pop()
            elif example_input is None:
                refused.append(f"{layers[layer]}: nothing tells whether it is 1d, 2d or 3d; give an example_input")
            elif not calls:
                refused.append(f"{layers[layer]} isn't called for this example_input")
            else:
                shapes = sorted({str(call.inputs[0].shape if call.inputs else None) for call in calls})
                refused.append(f"{layers[layer]} is called with {' and '.join(shapes)}, which no layer of torch takes")
    if refused:
        raise ValueError(
            f"can't convert to {NAME!r}: {'; '.join(refused)}. Others can be left out with exclude=, or converted to "
            "another norm"
        )
    return found


def dimensions_of(layer: Any) -> tuple[int, ...] | None:
    """The numbers of dimensions that inputs of a layer may have; None if that isn't said."""
    if isinstance(layer, TrackingNorm):
        return tuple(layer.dimensions) or None
    if type(layer).__name__ == "FrozenBatchNorm2d" or isinstance(layer, nn.BatchNorm2d):
        return (4,)
    if isinstance(layer, nn.BatchNorm1d):
        return (2, 3)
    return (5,) if isinstance(layer, nn.BatchNorm3d) else None


def plain_layer(cls: Any, arguments: dict[str, Any]) -> nn.Module:
    """A layer of torch by the arguments of an adapter, of which it takes what it knows."""
    known = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    layer: nn.Module = cls(**{key: value for key, value in arguments.items() if key in known})
    if not arguments.get("bias", True):  # torch's own argument of this name is there from 2.12 on
        layer.register_parameter("bias", None)
    return layer


def _symbolic(model: nn.Module) -> Graph | None:
    try:
        return symbolic(model)
    except ValueError:
        return None


def _class_of(call: Call, graph: Graph | None) -> Any:
    """By the shape of what a layer is called with, where it is known, or by what made it."""
    if not call.inputs or graph is None:
        return None
    view = call.inputs[0]
    if view.dtype is not None:
        return _OF_DIMENSIONS.get(len(view.shape))
    before = call.start
    while (giver := graph.giver(view, before)) is not None:
        source = graph.returned_by(giver, view)
        if source is None:
            return None
        module: Any = source.module
        if isinstance(module, nn.Linear):
            return nn.BatchNorm1d
        if (dimensions := dimensions_of(module)) is not None:
            return _OF_DIMENSIONS[dimensions[0]]
        if type(module).__module__.startswith("torch.nn.modules.") and type(module).__name__[-2:] in _SUFFIXES:
            return _SUFFIXES[type(module).__name__[-2:]]
        if not (isinstance(module, _SHAPELESS) or looks_like_batch_norm(module)) or not source.inputs:
            return None
        view, before = source.inputs[0], source.start
    return None


_SUFFIXES = {"1d": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}


@torch.no_grad()
def narrow_statistics(layer: Any) -> None:
    """Give running statistics the dtype of the parameters: torch's layer takes no mixture on CPU."""
    if layer.weight is not None and layer.weight.dtype in (torch.float16, torch.bfloat16):
        for name in ("running_mean", "running_var"):
            if layer._buffers.get(name) is not None:
                layer._buffers[name] = layer._buffers[name].to(layer.weight.dtype)
