"""Which policies act on a layer: each leaves a pair of hooks on it, which is the record that the others ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

from syncbn.norm.core import compat


class Acting:
    """A policy on one layer: hooks around its forward pass, which go to its copies and conversions.

    Attributes:
        undone_by: the call that ends it.
    """

    undone_by: ClassVar[str]

    def __init__(self, layer: nn.Module) -> None:
        self._handles: list[RemovableHandle] = [
            layer.register_forward_pre_hook(self.before_forward),
            layer.register_forward_hook(self.after_forward, always_call=True),
        ]
        compat.forget_graphs()

    def before_forward(self, layer: nn.Module, args: Any) -> None:
        """Change the layer for a forward pass."""
        raise NotImplementedError

    def after_forward(self, layer: nn.Module, args: Any, output: Any) -> None:
        """Change it back, after an error, too."""
        raise NotImplementedError

    def remove(self) -> None:
        """End it."""
        for handle in self._handles:
            handle.remove()
        compat.forget_graphs()


Kind = TypeVar("Kind", bound=Acting)


def acting_on(layer: nn.Module, kind: type[Kind]) -> Kind | None:
    """The policy of this kind that acts on a layer."""
    return next((policy for policy in _policies_on(layer) if isinstance(policy, kind)), None)


def others_on(layer: nn.Module, kind: type[Acting]) -> list[Acting]:
    """The policies of other kinds that act on a layer."""
    return [policy for policy in _policies_on(layer) if not isinstance(policy, kind)]


def _policies_on(layer: nn.Module) -> Iterator[Acting]:
    for hook in compat.forward_pre_hooks(layer):
        if isinstance(owner := getattr(hook, "__self__", None), Acting):
            yield owner
