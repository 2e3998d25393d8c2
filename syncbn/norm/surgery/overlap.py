"""Hide norms' messages behind the weight gradients of the layers after them: give both their places in one order."""

from __future__ import annotations

from typing import Any

from torch import nn

from syncbn.norm.core.attachable import FEEDERS
from syncbn.norm.fusion.order import LayerPlace, NormPlace, Order, add_place, remove_place
from syncbn.norm.surgery.forward import Example, Forward
from syncbn.norm.surgery.record import record


def overlap_messages(model: nn.Module, example_input: Example | None = None, forward: Forward | None = None) -> None:
    """Let the norms of `model` that have `overlap=True` know the convolutions and linear layers after them.

    In a backward pass, the message of such a norm is under way while the weight gradients of the layers that came after
    it are computed. `convert` and the package's models call this. Call it yourself for a model that is built with such
    norms otherwise, and again once parameters have been replaced by others, as `load_state_dict(assign=True)` and
    `to_empty` do: a layer whose weight isn't the known `Parameter` computes its gradients as ever. Without a norm that
    overlaps, layers get back what an earlier call has changed.

    Args:
        model: its layers' classes are put below one that sees what they compute; `isinstance` goes on being right.
        example_input: for a recorded forward pass in evaluation mode, so that the first step has its messages hidden,
            too. Without it, the first step finds out the order. In both cases each step learns that of the last one.
        forward: how to call the model for it, `forward(model, example_input)`.
    """
    norms: list[Any] = [module for module in model.modules() if getattr(module, "overlap", False) is True]
    layers = [module for module in model.modules() if isinstance(module, FEEDERS)]
    if not norms:
        for layer in layers:
            remove_place(layer)
        return
    calls = [] if example_input is None else record(model, example_input, forward).calls
    order = Order()
    numbers: dict[nn.Module, tuple[bool, int]] = {}
    for number, norm in enumerate(norms):
        norm.place = NormPlace(order, number)
        numbers[norm] = (True, number)
    for number, layer in enumerate(layers):
        weight = layer._parameters.get("weight")
        if type(weight) is nn.Parameter:
            add_place(layer, LayerPlace(order, number, weight))
            numbers[layer] = (False, number)
        else:
            remove_place(layer)
    order.foretell([numbers[call.module] for call in calls if call.module in numbers])
