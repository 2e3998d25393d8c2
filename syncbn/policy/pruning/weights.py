"""Convolutions, linear layers and batch norms: weights that make and read channels."""

from syncbn.norm.surgery.graph import Operation, View
from syncbn.policy.pruning.channels import Pattern
from syncbn.policy.pruning.flow import Flow


def convolution(flow: Flow, op: Operation) -> bool:
    """Rows of the weight make channels and columns read them; transposed convolutions swap the two."""
    x, weight, bias, *_, transposed, _, groups = op.args
    pattern = flow.pattern(x)
    if pattern is not None and pattern.axis != 1:
        return False
    if groups > 1:
        made = _grouped(flow, op, pattern or _staying(x.shape[1]))
        return made is not None and _biased(flow, op, made, bias)
    labels = flow.weight(weight, int(transposed))
    if labels is None or not flow.consume(pattern, weight, int(not transposed)):
        return False
    return _biased(flow, op, Pattern(1, labels, (False,) * len(labels)), bias)


def addmm(flow: Flow, op: Operation) -> bool:
    """b + x·W."""
    bias, x, weight = op.args
    return set(op.kwargs.values()) <= {1} and _linear(flow, op, x, weight, bias, (0, 1))


def mm(flow: Flow, op: Operation) -> bool:
    """x·W."""
    return _linear(flow, op, op.args[0], op.args[1], None, (0, 1))


def linear(flow: Flow, op: Operation) -> bool:
    """x·Wᵀ + b."""
    x, weight, *bias = op.args
    return _linear(flow, op, x, weight, bias[0] if bias else None, (1, 0))


def batch_norm(flow: Flow, op: Operation) -> bool:
    """γ·(x - mean) / sqrt(var + eps) + β, any of which may be missing.

    It is 0 where γ and β are and, without β, where x is 0 and the mean is x's.
    """
    x, pattern = op.args[0], flow.pattern(op.args[0])
    if pattern is not None and pattern.axis != 1:
        return False
    count = x.shape[1]
    labels = (0,) * count if pattern is None else pattern.labels
    zero = []
    for view in op.args[1:5]:
        mine = (flow.pattern(view) or _staying(count)) if isinstance(view, View) else None
        if mine is not None and not flow.tie(labels, mine.labels):
            return False
        zero.append((True,) * count if mine is None else mine.zero)
    if pattern is None:
        return True
    by_batch = any(flag is True for flag in op.args[3:6])  # `training`, with or without statistics
    scaled = zero[0] if isinstance(op.args[1], View) else (False,) * count
    silent = (
        (gamma or (by_batch and x)) and beta for gamma, beta, x in zip(scaled, zero[1], pattern.zero, strict=True)
    )
    flow.write(op.outputs[0], Pattern(1, labels, tuple(silent)))
    return True


def _linear(flow: Flow, op: Operation, x: View, weight: View, bias: View | None, axes: tuple[int, int]) -> bool:
    """x·W + b over the last dimension, read and made along `axes` of the weight. Rows of x keep their channels."""
    pattern, last = flow.pattern(x), len(x.shape) - 1
    labels = flow.weight(weight, axes[1])
    if labels is None:
        return False
    along_rows = pattern is not None and pattern.axis != last
    if not flow.consume(None if along_rows else pattern, weight, axes[0]):
        return False
    if not along_rows or pattern is None:
        return _biased(flow, op, Pattern(last, labels, (False,) * len(labels)), bias)
    flow.hold_labels(labels)
    if bias is not None:
        flow.hold(flow.pattern(bias))
    flow.write(op.outputs[0], pattern.but_zero(bias is None))
    return True


def _biased(flow: Flow, op: Operation, made: Pattern, bias: View | None) -> bool:
    """Record the output of a layer; its bias has the same channels and isn't 0."""
    if bias is not None and not flow.tie(made.labels, (flow.pattern(bias) or _staying(len(made.labels))).labels):
        return False
    flow.write(op.outputs[0], made.but_zero(bias is None) if any(made.labels) else None)
    return True


def _grouped(flow: Flow, op: Operation, into: Pattern) -> Pattern | None:
    """Output channels of a grouped convolution: it loses whole groups, or the same channels of each group."""
    weight, *_, transposed, _, groups = op.args[1:]
    first, second = flow.weight(weight, 0), flow.weight(weight, 1)
    if first is None or second is None:
        return None
    each = len(into.labels) // groups
    module = flow.convolution_module(weight, groups)
    if module is not None and groups >= each:  # loses fewer channels at a time
        return _whole_groups(flow, op, into, module, first, second)
    axis = flow.axis(weight, int(not transposed))
    if each == 1 or axis is None or not flow.tie(into.labels, first if transposed else second * groups):
        return None
    made = second * groups if transposed else first
    for labels in (into.labels, made):
        size = len(labels) // groups
        for start in range(size, len(labels), size):
            flow.tie(labels[:size], labels[start : start + size])
    flow.check_zero(into)
    flow.note_reader(axis)
    return Pattern(1, made, (False,) * len(made))


def _whole_groups(
    flow: Flow, op: Operation, into: Pattern, module: str, first: tuple[int, ...], second: tuple[int, ...]
) -> Pattern:
    """Tie the input and output channels of each group, which are removed with their rows of the weight."""
    transposed, groups = op.args[6], op.args[8]
    flow.hold_labels(second, f"{op} has groups, which go as a whole")
    made = flow.channels.new(op.outputs[0].shape[1]) if transposed else first
    zero: list[bool] = []
    for group in range(groups):
        inside = [
            label
            for labels in (into.labels, made, first)
            for label in labels[group * len(labels) // groups : (group + 1) * len(labels) // groups]
        ]
        flow.tie(inside[:1] * len(inside), inside)
        each_in, each_out = len(into.labels) // groups, len(made) // groups
        zero += [all(into.zero[group * each_in : (group + 1) * each_in])] * each_out
    flow.grouped[module] = made
    return Pattern(1, made, tuple(zero))


def _staying(count: int) -> Pattern:
    """Held slices with any content."""
    return Pattern(1, (0,) * count, (False,) * count)
