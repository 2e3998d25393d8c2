"""Batch statistics in evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from syncbn.norm.core import compat
from syncbn.norm.core.capabilities import normalizes_by_batch
from syncbn.norm.surgery.given import check_given
from syncbn.norm.surgery.select import Globs, select_layers
from syncbn.policy.acting import Acting, acting_on
from syncbn.policy.freeze import has_frozen_statistics
from syncbn.policy.layers import has_statistics, refuse_uncalled


def use_batch_statistics(model: nn.Module, *, include: Globs = None, exclude: Globs = None) -> nn.Module:
    """Make batch normalization layers normalize by the batch in evaluation too, in place.

    Running statistics are neither used nor updated in any mode; they stay in `state_dict`. A synchronized layer uses
    the batches of all ranks. Layers frozen by `freeze` aren't changed.

    Raises:
        ValueError: a glob that matches no layer; no layer to change.
    """
    check_given(locals())
    for layer in adaptable_layers(model, include, exclude):
        if batch_statistics_of(layer) is None:
            BatchStatistics(layer)
    return model


def use_running_statistics(model: nn.Module) -> nn.Module:
    """Undo `use_batch_statistics`, in place."""
    check_given(locals())
    for layer in model.modules():
        if (hook := batch_statistics_of(layer)) is not None:
            hook.remove()
    return model


class BatchStatistics(Acting):
    """Hooks that run a layer's forward in training mode without tracking statistics.

    Attributes:
        ran_without_gradient: whether the layer ran with gradients disabled since this was last set to False.
    """

    undone_by = "syncbn.policy.use_running_statistics(model)"
    ran_without_gradient = False

    def __init__(self, layer: nn.Module) -> None:
        self._kept: dict[str, Any] = {}
        super().__init__(layer)

    def before_forward(self, layer: nn.Module, args: Any) -> None:
        names = ("training", "running_mean", "running_var", "num_batches_tracked")
        self.ran_without_gradient |= not torch.is_grad_enabled()
        self._kept = {name: getattr(layer, name) for name in names}
        for name in names:
            setattr(layer, name, True if name == "training" else None)

    def after_forward(self, layer: nn.Module, args: Any, output: Any) -> None:
        for name, value in self._kept.items():
            setattr(layer, name, value)


def batch_statistics_of(layer: nn.Module) -> BatchStatistics | None:
    """Hooks of `use_batch_statistics` on a layer; None if it wasn't called."""
    return acting_on(layer, BatchStatistics)


def adaptable_layers(model: nn.Module, include: Globs, exclude: Globs) -> list[nn.Module]:
    """Batch normalization layers that aren't frozen.

    Raises:
        ValueError: a glob that matches no layer; no such layer; one that doesn't normalize only by its batch, or that
            a graph never calls.
    """
    layers = select_layers(model, lambda layer: _can_adapt(layer) or has_statistics(layer), include, exclude)
    refuse_uncalled(model, layers, "adapt")
    moving = [(path, layer) for path, layer in layers if _can_adapt(layer) and not has_frozen_statistics(layer)]
    if not moving:
        raise ValueError("the model has no batch normalization layer to adapt, or all of them are frozen")
    for path, layer in moving:
        if not normalizes_by_batch(layer):
            raise ValueError(
                f"{path or 'the layer'} is a {type(layer).__name__}, which doesn't normalize by its batch alone: leave "
                'it out with exclude=, take method="adabn", or syncbn.convert(model, "sync") first'
            )
    return [layer for _, layer in moving]


def _can_adapt(module: nn.Module) -> bool:
    return isinstance(module, compat.BatchNormBase)
