"""Elementwise operators."""

import itertools
from functools import cache
from typing import Any

import torch
from torch import Tensor

from syncbn.norm.core import compat
from syncbn.norm.surgery.graph import Operation, View
from syncbn.policy.pruning.channels import Pattern
from syncbn.policy.pruning.flow import Flow

# Elementwise operators that torch doesn't tag as such.
_MORE = frozenset(
    (
        "_prelu_kernel",
        "_to_copy",
        "copy_",
        "hardswish",
        "hardswish_",
        "leaky_relu",  # in older torch, at least up to 2.11
        "leaky_relu_",
        "log_sigmoid_forward",
    )
)


def is_pointwise(operation: Operation) -> bool:
    """Whether an operator is elementwise, by torch's tags."""
    return operation.kind in _MORE or _is_tagged(operation.op)


@cache
def _is_tagged(op: Any) -> bool:
    return torch.Tag.pointwise in op.tags or torch.Tag.pointwise in compat.without_writing(op).tags


def pointwise(flow: Flow, op: Operation) -> bool:
    """Tie the channels of all operands; constants and noise follow the others."""
    if not op.outputs or "out" in op.kwargs or _broadcast(op.reads) != op.outputs[0].shape:
        return False
    constants = [flow.blank(view) for view in op.reads]
    if op.kind == "copy_" and constants[0] is not None:
        return _copied(flow, op, constants[1])
    if constants and all(zero is not None for zero in constants):
        flow.write_blank(op.outputs[0], _is_zero(op, tuple(map(bool, constants))))
        return True
    patterns = _operands(flow, op)
    axes = {axis for pattern, view in patterns if (axis := _axis(pattern, view, op)) is not None}
    if not axes:
        for view in op.outputs:
            flow.write(view, None)
        return True
    return len(axes) == 1 and _tied(flow, op, axes.pop(), patterns, constants)


def _copied(flow: Flow, op: Operation, constant: bool | None) -> bool:
    """A copy to memory that holds nothing else, which takes over the channels."""
    source = flow.pattern(op.reads[1])
    if source is None and constant is not None:
        flow.write_blank(op.outputs[0], constant)
    else:
        flow.write(op.outputs[0], source)
    return source is None or op.reads[1].shape == op.outputs[0].shape


def _operands(flow: Flow, op: Operation) -> list[tuple[Pattern | None, View]]:
    """Operands with their channels; a parameter's are along the same dimension as the others'."""
    patterns = [None if flow.named(view) else flow.pattern(view) for view in op.reads]
    axes = {a for p, view in zip(patterns, op.reads, strict=True) if (a := _axis(p, view, op)) is not None}
    beside = axes.pop() - len(op.outputs[0].shape) if len(axes) == 1 else None
    for i, view in enumerate(op.reads):
        if flow.named(view):
            patterns[i] = flow.pattern(view, None if beside is None else beside + len(view.shape))
    return list(zip(patterns, op.reads, strict=True))


def _axis(pattern: Pattern | None, view: View, op: Operation) -> int | None:
    """Dimension of the output along which an operand has its channels."""
    return None if pattern is None else pattern.axis + len(op.outputs[0].shape) - len(view.shape)


def _tied(
    flow: Flow, op: Operation, axis: int, patterns: list[tuple[Pattern | None, View]], constants: list[bool | None]
) -> bool:
    out = op.outputs[0]
    size, place = out.shape[axis], axis - len(out.shape)
    labels: list[tuple[int, ...]] = []
    flags: list[tuple[bool, ...]] = []
    for (pattern, view), constant in zip(patterns, constants, strict=True):
        if pattern is not None:
            labels.insert(0, pattern.labels)
        elif constant is None and len(view.shape) >= -place and view.shape[place] > 1:
            labels.append((0,) * size)  # the same number of held slices
        flags.append(pattern.zero if pattern is not None else (bool(constant),) * size)
    if not all(flow.tie(labels[0], others) for others in labels[1:]):
        return False
    zero = {flag: _is_zero(op, flag) for flag in set(zip(*flags, strict=True))}
    for view in op.outputs:
        if view.shape == out.shape:
            flow.write(view, Pattern(axis, labels[0], tuple(zero[flag] for flag in zip(*flags, strict=True))))
    return True


def _broadcast(views: tuple[View, ...]) -> tuple[int, ...] | None:
    try:
        return tuple(torch.broadcast_shapes(*(view.shape for view in views)))
    except RuntimeError:
        return None


def _is_zero(op: Operation, flags: tuple[bool, ...]) -> bool:
    """Test whether an operator returns 0 where the flagged operands are 0, for any values of the others."""
    numbers = torch.Generator().manual_seed(0)
    order = itertools.count()

    def operand(dtype: torch.dtype) -> Tensor:
        if flags[next(order)]:
            return torch.zeros(64, dtype=dtype, device="cpu")
        if dtype.is_floating_point or dtype.is_complex:
            return (3 * torch.randn(64, generator=numbers, device="cpu")).to(dtype)
        return torch.randint(0, 2 if dtype == torch.bool else 4, (64,), generator=numbers).to(dtype)

    def filled(value: Any) -> Any:
        if isinstance(value, View):
            return operand(value.dtype or torch.float32)
        return [filled(item) for item in value] if isinstance(value, tuple) else value

    kwargs = {key: filled(value) for key, value in op.kwargs.items() if key not in ("device", "pin_memory", "layout")}
    try:
        returned = op.op(*(filled(value) for value in op.args), **kwargs)
        return bool(((returned[0] if isinstance(returned, tuple | list) else returned) == 0).all())
    except Exception:  # the operator doesn't accept vectors
        return False
