"""Operators that create tensors or views."""

from syncbn.norm.surgery.graph import Operation, View
from syncbn.policy.pruning.flow import Flow, Rule


def constant(zero: bool) -> Rule:
    """A new tensor, with a size that may be fixed or follow another tensor's: the proof decides."""

    def rule(flow: Flow, op: Operation) -> bool:
        value = op.args[1] if op.kind == "full" else op.args[2] if op.kind == "new_full" else None
        flow.write_blank(op.outputs[0], zero if value is None else value == 0)
        return True

    return rule


def like(zero: bool) -> Rule:
    """A new tensor with the size of another one."""

    def rule(flow: Flow, op: Operation) -> bool:
        pattern = flow.pattern(op.args[0])
        if pattern is None and flow.blank(op.args[0]) is not None:
            flow.write_blank(op.outputs[0], zero)
        else:
            flow.write(op.outputs[0], pattern and pattern.with_zero(zero))
        return True

    return rule


def filled(flow: Flow, op: Operation) -> bool:
    """Every element gets a new value and stays in its channel."""
    view = op.writes[0]
    value = op.args[1] if op.kind == "fill_" else 0
    zero = op.kind in ("zero_", "fill_") and not isinstance(value, View) and value == 0
    if flow.blank(view) is not None:
        flow.write_blank(view, zero)
    else:
        pattern = flow.pattern(view)
        flow.write(view, pattern and pattern.with_zero(zero))
    return True


def same(flow: Flow, op: Operation) -> bool:
    """Another view of all elements: their place in memory determines their channels."""
    return True


def unknown_view(flow: Flow, op: Operation) -> bool:
    """An unknown view of a tensor with channels."""
    return all(flow.named(view) is not None or flow.pattern(view) is None for view in op.reads)


def part(flow: Flow, op: Operation) -> bool:
    """A part of a tensor; not along its channels, whose indices would differ in a smaller network."""
    x = op.args[0]
    pattern = None if flow.named(x) else flow.pattern(x)
    axis = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % len(x.shape)
    if pattern is None or pattern.axis != axis:
        return True
    step = op.args[4] if op.kind == "slice" and len(op.args) > 4 else 1
    return op.kind == "slice" and op.outputs[0].shape == x.shape and step == 1


def split(flow: Flow, op: Operation) -> bool:
    """Parts of equal size: they lose the same number of channels at the same places."""
    x = op.args[0]
    pattern = None if flow.named(x) else flow.pattern(x)
    axis = (op.args[2] if len(op.args) > 2 else op.kwargs.get("dim", 0)) % len(x.shape)
    if pattern is None or pattern.axis != axis or len(op.outputs) == 1:
        return True
    size = op.outputs[0].shape[axis]
    if any(view.shape[axis] != size for view in op.outputs):
        return False
    for start in range(size, len(pattern.labels), size):
        flow.tie(pattern.labels[:size], pattern.labels[start : start + size])
    return True
