"""Operators that move elements."""

import itertools

import torch

from syncbn.norm.surgery.graph import Operation, View
from syncbn.policy.pruning.channels import Pattern
from syncbn.policy.pruning.flow import Flow


def cat(flow: Flow, op: Operation) -> bool:
    """Concatenation: along the channels it has all of them; along other dimensions the channels are the same."""
    views = [view for view in op.args[0] if view.shape != (0,)]
    if not views:
        return True
    axis = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % len(views[0].shape)
    patterns = [flow.pattern(view) for view in views]
    if {pattern.axis for pattern in patterns if pattern is not None} != {axis}:
        return _side_by_side(flow, op, patterns, views, axis, 0)
    sizes = [view.shape[axis] for view in views]
    labels = [p.labels if p else (0,) * size for p, size in zip(patterns, sizes, strict=True)]
    zero = [p.zero if p else (False,) * size for p, size in zip(patterns, sizes, strict=True)]
    flow.write(op.outputs[0], Pattern(axis, tuple(itertools.chain(*labels)), tuple(itertools.chain(*zero))))
    return True


def stack(flow: Flow, op: Operation) -> bool:
    """Stacking of tensors along a new dimension."""
    views = list(op.args[0])
    axis = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % (len(views[0].shape) + 1)
    return _side_by_side(flow, op, [flow.pattern(view) for view in views], views, axis, 1)


def _side_by_side(
    flow: Flow, op: Operation, patterns: list[Pattern | None], views: list[View], axis: int, more: int
) -> bool:
    """Tensors joined along a dimension other than their channels', which are tied."""
    axes = {pattern.axis for pattern in patterns if pattern is not None}
    if len(axes) != 1:
        return not axes
    (mine,) = axes
    size = views[0].shape[mine]
    labels = sorted((p.labels if p else (0,) * size for p in patterns), reverse=True)
    if not all(flow.tie(labels[0], other) for other in labels[1:]):
        return False
    zero = tuple(map(all, zip(*(p.zero if p else (False,) * size for p in patterns), strict=True)))
    flow.write(op.outputs[0], Pattern(mine + (more if axis <= mine else 0), labels[0], zero))
    return True


def glu(flow: Flow, op: Operation) -> bool:
    """One half times a function of the other half."""
    pattern = flow.pattern(op.args[0])
    axis = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", -1)) % len(op.args[0].shape)
    if pattern is not None and pattern.axis == axis:
        half = len(pattern.labels) // 2
        flow.tie(pattern.labels[:half], pattern.labels[half:])
        pattern = Pattern(axis, pattern.labels[:half], pattern.zero[:half])
    flow.write(op.outputs[0], pattern)
    return True


def unfolded(flow: Flow, op: Operation) -> bool:
    """Patches as columns: each channel has one row per kernel element."""
    x, out = op.args[0], op.outputs[0]
    pattern = flow.pattern(x)
    if pattern is None:
        return True
    if pattern.axis != len(x.shape) - 3:
        return False
    axis = len(out.shape) - 2
    times = out.shape[axis] // len(pattern.labels)
    labels = tuple(label for label in pattern.labels for _ in range(times))
    zero = tuple(zero for zero in pattern.zero for _ in range(times))
    flow.write(out, Pattern(axis, labels, zero))
    return True


def rearranged(flow: Flow, op: Operation) -> bool:
    """Pure rearrangement of elements, applied to the channel numbers."""
    x = op.args[0]
    pattern = flow.pattern(x)
    if pattern is None:
        return True
    codes = pattern.codes(len(x.shape)).expand(x.shape)
    if op.kind == "channel_shuffle":  # each group must lose channels at the same places
        flow.channels.pattern(codes.unflatten(1, (op.args[1], -1)), str(op))
    moved = op.op(codes.double(), *op.args[1:], **op.kwargs).long()
    flow.write(op.outputs[0], flow.channels.pattern(moved, str(op)))
    return True


def index(flow: Flow, op: Operation) -> bool:
    """Indexing along dimensions other than the channels'."""
    x, places = op.args[:2]
    pattern = flow.pattern(x)
    if pattern is None:
        return True
    if op.kind == "index_select":
        if places % len(x.shape) == pattern.axis:
            return False
        flow.write(op.outputs[0], pattern)
        return True
    masked = any(isinstance(place, View) and place.dtype in (torch.bool, torch.uint8) for place in places)
    if masked or (pattern.axis < len(places) and places[pattern.axis] is not None):
        return False
    firsts = [
        torch.zeros(place.shape, dtype=torch.long, device="cpu") if isinstance(place, View) else None
        for place in places
    ]
    moved = torch.ops.aten.index.Tensor(pattern.codes(len(x.shape)).expand(x.shape), firsts)
    flow.write(op.outputs[0], flow.channels.pattern(moved, str(op)))
    return True
