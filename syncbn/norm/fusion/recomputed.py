"""Tensors that are recomputed instead of saved for the gradients of the functions that use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from syncbn.norm.core import compat


class Recomputed(Tensor):
    """Output of an autograd function that can recompute it.

    A convolution saves its input. Given this one, it saves the function's graph node instead, which has saved what the
    output is computed from; in the backward pass the node recomputes it. All other saved tensors are treated as usual,
    including hooks of `saved_tensors_hooks` and activation checkpointing. Functions of torch return ordinary tensors
    for a tensor of this class.
    """

    _node: Any
    _again: Callable[[Any], Tensor]
    _made: int

    @staticmethod
    def of(y: Tensor, again: Callable[[Any], Tensor]) -> Tensor:
        """Wrap `y`, which `again(y.grad_fn)` recomputes exactly."""
        recomputed = y.as_subclass(Recomputed)
        recomputed._node, recomputed._again, recomputed._made = y.grad_fn, again, compat.version_of(y)
        return recomputed

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not all(issubclass(kind, cls) or kind is Tensor for kind in types):
            return NotImplemented
        if torch.compiler.is_compiling():  # a compiled graph chooses what to save
            with compat.plain_tensors():
                return func(*args, **kwargs or {})
        recomputed = [arg for arg in args if isinstance(arg, Recomputed)]
        with compat.plain_tensors(), saved_tensors_hooks(*_hooks(recomputed)):
            result = func(*args, **kwargs or {})
        recomputed.clear()  # the graph keeps the hooks
        return result


def _hooks(recomputed: list[Recomputed]) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    outer_pack, outer_unpack = compat.saved_tensor_hooks() or (_itself, _itself)

    def pack(tensor: Tensor) -> Any:
        for known in recomputed:
            # After an in-place write it differs from what would be recomputed.
            if compat.version_of(known) == known._made and _is_same(known, tensor):
                return known._again, known._node
        return outer_unpack, outer_pack(tensor)

    return pack, _unpack


def _unpack(packed: tuple[Callable[[Any], Tensor], Any]) -> Tensor:
    compute, kept = packed
    return compute(kept)


def _is_same(a: Tensor, b: Tensor) -> bool:
    return (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)


def _itself(tensor: Tensor) -> Tensor:
    return tensor
