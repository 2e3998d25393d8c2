"""Removal of channels from a network: smaller parameters, and updated sizes in modules."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from syncbn.norm.core.attachable import FEEDERS
from syncbn.norm.core.capabilities import is_per_channel
from syncbn.norm.core.linear_maps import is_transposed
from syncbn.norm.surgery.exchanged import original_of
from syncbn.policy.layers import buffers_of
from syncbn.policy.pruning.flow import Axis, Flow


class Removal:
    """A set of channels to remove from a network."""

    def __init__(self, flow: Flow, roots: set[int]) -> None:
        self.flow = flow
        self.roots = roots

    def keeps(self, labels: tuple[int, ...]) -> list[int]:
        """Indices of the channels that stay."""
        return [place for place, label in enumerate(labels) if self.flow.channels.root(label) not in self.roots]

    @cached_property
    def lost(self) -> dict[Axis, list[int]]:
        """Indices of the removed channels, by dimension of a parameter or buffer."""
        found = {}
        for axis, labels in self.flow.axes.items():
            stay = set(self.keeps(labels))
            if len(stay) < len(labels):
                found[axis] = [place for place in range(len(labels)) if place not in stay]
        return found

    def silence(self, model: nn.Module) -> None:
        """Set only γ and β of the removed channels to 0."""
        for name, layer in model.named_modules():
            if is_per_channel(layer):
                for part in ("weight", "bias"):
                    self._zero(model, Axis(f"{name}.{part}" if name else part, 0))

    def mask(self, model: nn.Module) -> None:
        """Mask the removed channels right before each weight that loses columns, by setting these columns to 0."""
        for axis in self.flow.read:
            self._zero(model, axis)

    def shrink(self, model: nn.Module) -> None:
        """Remove the channels from the parameters and buffers of `model`, in place."""
        tensors = _tensors(model)
        small = {axis.name: tensors[axis.name].detach() for axis in self.lost}
        for axis, places in self.lost.items():
            small[axis.name] = _without(small[axis.name], axis.axis, places)
        changed = {id(tensors[name]): _like(value, tensors[name]) for name, value in small.items()}
        for path, module in model.named_modules():
            originals = _originals(module)
            for layer in originals:
                self._follow(layer, module, path)
            if path in self.flow.counted:
                module.num_features = len(self.keeps(self.flow.counted[path]))
            touched = [_replace(layer, changed) for layer in (module, *originals)]
            if any(touched):
                for layer in (module, *originals):
                    self._renumber(layer, path)

    def _follow(self, original: Any, layer: Any, path: str) -> None:
        """Remove a converted layer's channels from what `syncbn.revert` restores and isn't shared with it."""
        for axis, places in self.lost.items():
            module, _, part = axis.name.rpartition(".")
            for of in (original._parameters, original._buffers) if module == path else ():
                mine, theirs = of.get(part), getattr(layer, part)
                if mine is not None and mine is not theirs and mine.shape == theirs.shape:
                    of[part] = _like(_without(mine.detach(), axis.axis, places), mine)

    def _renumber(self, layer: Any, path: str) -> None:
        """Update the sizes stored in a layer to those of its tensors."""
        kind = type(layer)
        if issubclass(kind, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif issubclass(kind, FEEDERS):
            outputs = self.flow.grouped.get(path)
            if outputs is not None:
                layer.groups = layer.groups * len(self.keeps(outputs)) // len(outputs)
            first, second = layer.weight.shape[:2]
            sizes = (first, second * layer.groups) if is_transposed(layer) else (second * layer.groups, first)
            layer.in_channels, layer.out_channels = sizes
        elif issubclass(kind, nn.PReLU):
            layer.num_parameters = layer.weight.numel()
        elif isinstance(getattr(layer, "num_features", None), int):
            tensors = [t for t in (*layer._parameters.values(), *buffers_of(layer).values()) if t is not None]
            layer.num_features = next((len(t) for t in tensors if t.dim() == 1), layer.num_features)
            if clear_window := getattr(layer, "clear_window", None):  # a window stores moments of all channels
                clear_window()

    def _zero(self, model: nn.Module, axis: Axis) -> None:
        tensor = _tensors(model).get(axis.name)
        if tensor is not None and axis in self.lost:
            with torch.no_grad():
                tensor.index_fill_(axis.axis, _numbers(self.lost[axis], tensor), 0)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _without(tensor: Tensor, dimension: int, places: list[int]) -> Tensor:
    gone = set(places)
    stay = [place for place in range(tensor.shape[dimension]) if place not in gone]
    return tensor.index_select(dimension, _numbers(stay, tensor))


def _numbers(places: list[int], like: Tensor) -> Tensor:
    return torch.tensor(places, dtype=torch.long, device=like.device)


def _like(small: Tensor, tensor: Tensor) -> Any:
    """Make a parameter that replaces another one."""
    return nn.Parameter(small, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small


def _originals(module: nn.Module) -> list[nn.Module]:
    """Original layers of a converted one."""
    original = original_of(module)
    return [] if original is None else [original, *_originals(original)]


def _replace(layer: Any, changed: dict[int, Any]) -> bool:
    found = False
    for of in (layer._parameters, layer._buffers):
        for name, tensor in of.items():
            if id(tensor) in changed:
                of[name] = changed[id(tensor)]
                found = True
    return found
