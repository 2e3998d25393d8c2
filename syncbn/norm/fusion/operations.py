"""Convolutions and linear layers with each of their gradients by itself, equal to torch's bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from syncbn.norm.core import compat

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


class LayerOperation(Protocol):
    """y of x, weight and bias, all of one dtype."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output."""

    def grads(self, dy: Tensor, x: Tensor, weight: Tensor, needed: Sequence[bool]) -> Grads:
        """The gradients of x, weight and bias, those that are needed. Differentiable."""

    def channels_out(self, weight: Tensor) -> int:
        """The number of elements of a bias."""


class LayerCall(NamedTuple):
    """One call of such an operation."""

    operation: LayerOperation
    x: Tensor
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Convolution:
    """Any convolution of a batch."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `LayerOperation`."""
        return torch.convolution(
            x,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )

    def grads(self, dy: Tensor, x: Tensor, weight: Tensor, needed: Sequence[bool]) -> Grads:
        """See `LayerOperation`."""
        return compat.convolution_grads(
            dy,
            x,
            weight,
            self.channels_out(weight),
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
            needed,
        )

    def channels_out(self, weight: Tensor) -> int:
        """See `LayerOperation`."""
        return weight.shape[1] * self.groups if self.transposed else weight.shape[0]


class Linear:
    """x·weightᵀ + bias over the last dimension of a contiguous x."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `LayerOperation`."""
        return F.linear(x, weight, bias)

    def grads(self, dy: Tensor, x: Tensor, weight: Tensor, needed: Sequence[bool]) -> Grads:
        """See `LayerOperation`."""
        rows, inputs = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        return (
            rows.mm(weight).view(x.shape) if needed[0] else None,
            rows.t().mm(inputs) if needed[1] else None,
            rows.sum(0) if needed[2] else None,
        )

    def channels_out(self, weight: Tensor) -> int:
        """See `LayerOperation`."""
        return weight.shape[0]


def call_of(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> LayerCall | None:
    """What a function of torch computes, if it is one of these operations, and this module knows it to the last bit."""
    names = _ARGUMENTS.get(function)
    if names is None:
        return None
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    if function is F.linear:
        is_plain = x.dim() >= 2 and x.is_contiguous() and weight.dim() == 2 and weight.is_contiguous()
        return LayerCall(Linear(), x, weight, bias) if is_plain else None
    dims = weight.dim() - 2
    if x.dim() != weight.dim():  # one sample without a batch
        return None
    dilation = _tuple(given.get("dilation", 1), dims)
    padding = _padding(given.get("padding", 0), weight.shape[2:], dilation)
    if padding is None:
        return None
    operation = Convolution(
        _tuple(given.get("stride", 1), dims),
        padding,
        dilation,
        function in _TRANSPOSED,
        _tuple(given.get("output_padding", 0), dims),
        given.get("groups", 1),
    )
    return LayerCall(operation, x, weight, bias)


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...] | None:
    """The padding on either side; None where the two sides differ."""
    if not isinstance(padding, str):
        return _tuple(padding, len(kernel))
    totals = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
    return None if any(total % 2 for total in totals) else tuple(total // 2 for total in totals)


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    """One number for each dimension; torch takes one for all, too, also in a tuple."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    **dict.fromkeys(
        (F.conv1d, F.conv2d, F.conv3d), ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    ),
    **dict.fromkeys(
        _TRANSPOSED, ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    ),
}
