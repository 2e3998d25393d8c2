"""Operators over positions: independent of channels, unless they act along the channel dimension."""

from typing import Any

from syncbn.norm.surgery.graph import Operation
from syncbn.policy.pruning.channels import Pattern
from syncbn.policy.pruning.flow import Flow, Rule


def over_last(dims: int) -> Rule:
    """Pooling, resizing and padding over the last dimensions, for each channel."""

    def rule(flow: Flow, op: Operation) -> bool:
        pattern = flow.pattern(op.args[0])
        if pattern is not None and pattern.axis >= len(op.args[0].shape) - dims:
            return False
        if any(flow.pattern(other) is not None for other in op.reads[1:]):
            return False
        for view in op.outputs:
            flow.write(view, pattern)
        return True

    return rule


def reduced(zero: bool) -> Rule:
    """A mean, sum or maximum over dimensions other than the channels'."""

    def rule(flow: Flow, op: Operation) -> bool:
        x = op.args[0]
        pattern = flow.pattern(x)
        if pattern is None:
            return True
        over = _dimensions(op, 2 if op.kind in ("norm", "linalg_vector_norm") else 1, None)
        if not over or pattern.axis in over:
            return False
        for view in op.outputs:
            kept = len(view.shape) == len(x.shape)
            axis = pattern.axis if kept else pattern.axis - sum(d < pattern.axis for d in over)
            flow.write(view, pattern.moved(axis).but_zero(zero))
        return True

    return rule


def along(zero: bool) -> Rule:
    """A softmax, cumulative sum or sort along dimensions other than the channels'."""

    def rule(flow: Flow, op: Operation) -> bool:
        x = op.args[0]
        pattern = flow.pattern(x)
        if pattern is None:
            return True
        stays = op.kind == "native_layer_norm" and op.args[3] is None  # zeros have mean 0
        if op.kind == "native_layer_norm":
            over = set(range(len(x.shape) - len(op.args[1]), len(x.shape)))
        else:
            over = _dimensions(op, 2 if op.kind in ("roll", "topk") else 1, () if op.kind == "roll" else -1)
        if not over or pattern.axis in over:
            return False
        for view in op.outputs:
            flow.write(view, pattern.but_zero(zero or stays) if len(view.shape) == len(x.shape) else None)
        return True

    return rule


def padded(flow: Flow, op: Operation) -> bool:
    """Constant padding; along the channels it adds held ones."""
    x, amounts, *rest = op.args
    pattern = flow.pattern(x)
    if pattern is None:
        return True
    value = rest[0] if rest else op.kwargs.get("value", 0)
    place = 2 * (len(x.shape) - 1 - pattern.axis)
    before, after = amounts[place : place + 2] if place < len(amounts) else (0, 0)
    if before < 0 or after < 0:
        return False
    labels = (0,) * before + pattern.labels + (0,) * after
    zero = (True,) * before + pattern.zero + (True,) * after
    flow.write(op.outputs[0], Pattern(pattern.axis, labels, zero).but_zero(value == 0))
    return True


def _dimensions(op: Operation, place: int, default: Any) -> set[int]:
    """Dimensions that an operator acts on, counted from 0; empty if it doesn't specify any."""
    given = op.args[place] if len(op.args) > place else op.kwargs.get("dim", op.kwargs.get("dims", default))
    dimensions = given if isinstance(given, tuple | list) else (given,)
    if any(type(dimension) is not int for dimension in dimensions):
        return set()
    return {dimension % len(op.args[0].shape) for dimension in dimensions}
