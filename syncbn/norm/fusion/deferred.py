"""Deferred output of a norm, computed on use."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from syncbn.norm.core import compat
from syncbn.norm.fusion.fused import Normalization

_RELU = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_LEAKY_RELU = {F.leaky_relu, F.leaky_relu_}
SUM = {torch.add, Tensor.add, Tensor.add_}
_IN_PLACE = {torch.relu_, Tensor.relu_, F.leaky_relu_, Tensor.add_}
_METADATA = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, torch.is_floating_point),
}


class Deferred(Tensor):
    """Deferred output y of a normalization: a ReLU of it, or of its sum with a shortcut, is computed in one function.

    Any other function that takes it gets y, computed once at that time, so it is correct everywhere. It has the shape,
    dtype and device of y, and no memory.
    """

    _normalization: Normalization
    _residual: Tensor | None
    _value: Tensor | None
    _versions: tuple[int, int]

    @staticmethod
    def of(normalization: Normalization, residual: Tensor | None = None) -> Deferred:
        """Make the deferred output of `normalization`, plus `residual`."""
        deferred = compat.empty_shell(Deferred, normalization.x)
        deferred.__dict__.update(_normalization=normalization, _residual=residual, _value=None)
        deferred._versions = deferred._versions_now()
        # A gradient that arrives here would be lost.
        hook = _backward_of(deferred) if compat.in_backward() else _refuse
        with compat.plain_tensors():
            deferred.register_hook(hook)
        return deferred

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with compat.plain_tensors():
                return func(*args, **kwargs)
        fused = _fused(func, args, kwargs)
        if fused is not None:
            return fused
        args, kwargs = compat.tree_map_only(Deferred, Deferred.value, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares the method without `cls`
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        _refuse()

    def value(self) -> Tensor:
        """Compute y, without an activation."""
        if self._value is None:
            with torch.enable_grad():  # as when the layer ran
                self._value = self.activated(1.0)
        return self._value

    def activated(self, slope: float) -> Tensor:
        """Compute a(y) in one function."""
        if self._versions != self._versions_now():
            raise RuntimeError(
                "the input or the shortcut of a SyncBatchNorm with fuse_activation=True was modified in place before "
                "the activation: leave this layer out of the fusion, or don't work in place"
            )
        return self._normalization.activate(self._residual, slope)

    def _versions_now(self) -> tuple[int, int]:
        residual = self._residual
        return compat.version_of(self._normalization.x), -1 if residual is None else compat.version_of(residual)


def _refuse(gradient: Any = None) -> None:
    raise RuntimeError(
        "the output of a SyncBatchNorm with fuse_activation=True went where Python can't follow it, such as into a "
        "torch.autograd.Function: leave this layer out of the fusion"
    )


def _backward_of(deferred: Deferred) -> Callable[[Tensor], None]:
    """Hook for a recomputed output: before torch 2.11, a reentrant checkpoint differentiates it unseen."""
    reference = weakref.ref(deferred)

    def hook(gradient: Tensor) -> None:
        recomputed = reference()
        assert recomputed is not None
        torch.autograd.backward(recomputed.value(), gradient)

    return hook


def _fused(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Result of `func` if it can be fused with the normalization."""
    first = args[0] if args else None
    slope = slope_of(func, args, kwargs)
    if slope is not None and isinstance(first, Deferred) and first._value is None:
        y = first.activated(slope)
        if func in _IN_PLACE or kwargs.get("inplace"):
            first._value = y
        return y
    if func in SUM and len(args) == 2 and not kwargs:
        return _sum(args[0], args[1], func in _IN_PLACE)
    return None


def slope_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """Negative slope a(z) / z for z < 0 of an activation that is z elsewhere; None for other functions."""
    if func in _RELU:
        return 0.0
    if func in _LEAKY_RELU:
        slope = kwargs.get("negative_slope", args[1] if len(args) > 1 else 0.01)
        return float(slope) if slope >= 0 else None
    return None


def _sum(a: Any, b: Any, in_place: bool) -> Deferred | None:
    if not _takes_residual(a, b):
        if in_place or not _takes_residual(b, a):
            return None
        a, b = b, a
    residual = b.value() if isinstance(b, Deferred) else b
    total = Deferred.of(a._normalization, residual)
    if in_place:
        a.__dict__.update(total.__dict__)
        return a
    return total


def _takes_residual(norm: Any, residual: Any) -> bool:
    """Whether a sum can be deferred, too: of two different tensors with equal shape, dtype and device."""
    return (
        isinstance(norm, Deferred)
        and norm._value is None
        and norm._residual is None
        and isinstance(residual, Tensor)
        and residual is not norm
        and (residual.shape, residual.dtype, residual.device) == (norm.shape, norm.dtype, norm.device)
    )
