"""Undoing a batch's changes to a network besides gradients."""

import copy
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric


class Undo:
    """Snapshot of a network's buffers, extra state and metrics, to restore after a batch.

    Running statistics are buffers, the window of a cross-iteration norm is extra state.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        self._extras: list[tuple[nn.Module, Any]] = [
            (layer, copy.deepcopy(layer.get_extra_state()))
            for layer in module.modules()
            if type(layer).get_extra_state is not nn.Module.get_extra_state
        ]
        self._metrics = [
            (metric, copy.deepcopy(metric.metric_state), metric._update_count)
            for metric in module.modules()
            if isinstance(metric, Metric)
        ]

    def layers(self) -> None:
        """Restore the layers' state."""
        with torch.no_grad():
            for name, buffer in self._buffers.items():
                self._module.get_buffer(name).copy_(buffer)
        for layer, state in self._extras:
            layer.set_extra_state(state)

    def metrics(self) -> None:
        """Restore the metrics."""
        for metric, state, count in self._metrics:
            for name, value in state.items():
                setattr(metric, name, value)
            metric._update_count = count
            metric._computed = None
