"""Flow of channels through a network, from the weights that make them to those that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import nn

from syncbn.norm.core import compat
from syncbn.norm.surgery.graph import Graph, Named, Operation, View, is_whole
from syncbn.policy.pruning.channels import BLANK, Channels, Memory, Pattern

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


# Records an operation's effect on channels; False if it is unknown.
Rule = Callable[["Flow", Operation], bool]


class Axis(NamedTuple):
    """A dimension of a parameter or buffer, identified by its first name."""

    name: str
    axis: int


class Flow:
    """The makers, users and readers of each channel of a network.

    Attributes:
        channels: numbered channels, tied or held.
        axes: channels along dimensions of parameters and buffers.
        read: dimensions of weights that read channels, and lose columns with them.
        grouped: output channels of convolutions that lose whole groups with a channel.
        counted: channels of instance norms that store their number but have no parameters for them.
        taken: channels that each operation took, by graph and index.
        returned: patterns of the results of each operation; blank for a constant.
        graphs: graphs followed so far.
    """

    def __init__(
        self, rule_for: Callable[[Operation], Rule | None], zeros: Iterable[str], whole: Iterable[str]
    ) -> None:
        """Initialize.

        Args:
            rule_for: returns the rule of an operation, or None if there is none.
            zeros: names of the parameters that are 0 for removed channels: γ and β.
            whole: names of the parameters and buffers that can't shrink.
        """
        self._rule_for = rule_for
        self.channels = Channels()
        self.axes: dict[Axis, tuple[int, ...]] = {}
        self.read: set[Axis] = set()
        self.grouped: dict[str, tuple[int, ...]] = {}
        self.counted: dict[str, tuple[int, ...]] = {}
        self.taken: dict[tuple[int, int], set[int]] = {}
        self.returned: dict[tuple[int, int], list[Pattern | None]] = {}
        self._zeros = set(zeros)
        self._whole = set(whole)
        self.graphs: list[Graph] = []
        self._only: set[str] | None = None

    def follow(self, graph: Graph, only: set[str] | None = None) -> None:
        """Follow the operations of a forward pass.

        Args:
            graph: graph of the model that the names belong to.
            only: names of the modules in which to hold channels: for a pass in training mode, after one in evaluation
                has covered the rest.
        """
        self.graphs.append(graph)
        self._graph, self._only = graph, only
        self._memories: dict[int, Memory] = {}
        unseen = set(graph.unseen.values())
        counting = {
            call.start: call for call in graph.calls if isinstance(call.module, compat.INSTANCE_NORMS) and call.inputs
        }
        for self._operation in graph.operations:
            if self._operation.index in unseen and self._counts():
                self.channels.hold_all(f"{self._operation} works on a tensor of unknown origin")
            if (call := counting.get(self._operation.index)) and (pattern := self._seen(call.inputs[0])):
                self.counted[call.name] = pattern.labels
            self._step(self._operation)
        if only is None:
            for storage in graph.kept & self._memories.keys():
                self.channels.hold(self._memories[storage].labels(), "the model returns it, or keeps it")

    def _step(self, operation: Operation) -> None:
        self._understood: set[str] = set()
        patterns = [self._seen(view) for view in operation.reads]
        key = (len(self.graphs) - 1, operation.index)
        rule = None if operation.op is None else self._rule_for(operation)
        understood = operation.op is None and not operation.writes  # a function that only passes tensors on
        if not understood and (rule is None or not rule(self, operation)):
            self._understood.clear()
            for pattern in patterns:
                self.hold(pattern)
            if not operation.is_geometry:
                for view in (*operation.writes, *operation.outputs):
                    self.write(view, None)
        if not operation.is_geometry:
            for view in operation.reads:
                named = self.named(view)
                if named is not None and named.names[0] not in self._understood:
                    self._keep(named)
        returned = [self._seen(view) or self._blank(view) for view in operation.outputs]
        self.taken[key] = {label for pattern in patterns if pattern for label in pattern.labels if label > 0}
        self.returned[key] = returned

    # Tensors

    def pattern(self, view: View, axis: int | None = None) -> Pattern | None:
        """Channels of a tensor that an operation reads.

        Those of a vector parameter are along its only dimension; those of a larger one along `axis`, if given.
        """
        named = self.named(view)
        if named is None:
            return self._seen(view)
        long = [d for d, (size, stride) in enumerate(zip(view.shape, view.strides, strict=True)) if size > 1 and stride]
        along = axis if axis is not None and axis in long else (long[0] if len(long) == 1 else None)
        if not long:
            self._understood.add(named.names[0])
            return None
        labels = None if along is None or (axis is not None and along != axis) else self.weight(view, along)
        if labels is None or along is None:
            return None
        for other in long:
            if other != along:
                self.hold_labels(self.weight(view, other) or ())
        zero = any(name in self._zeros for name in named.names)
        return Pattern(along, labels, (zero,) * len(labels)) if any(labels) else None

    def weight(self, view: View, dimension: int) -> tuple[int, ...] | None:
        """Channels along a dimension of a parameter; None if the tensor isn't an unmodified one."""
        axis = self.axis(view, dimension)
        if axis is None:
            return None
        self._understood.add(axis.name)
        if axis not in self.axes:
            size = view.shape[dimension]
            self.axes[axis] = (0,) * size if axis.name in self._whole else self.channels.new(size)
        return self.axes[axis]

    def axis(self, view: View, dimension: int) -> Axis | None:
        """Parameter dimension that a tensor's dimension is; None if the tensor isn't an unmodified parameter."""
        named = self.named(view)
        if named is None or self._graph.is_written(named):
            return None
        if not is_whole(view, named.view):
            return None
        here = view.shape[dimension], view.strides[dimension]
        places = [i for i, there in enumerate(zip(named.view.shape, named.view.strides, strict=True)) if there == here]
        if here[0] == 1:
            return Axis(named.names[0], -1)
        return Axis(named.names[0], places[0]) if len(places) == 1 else None

    def named(self, view: View) -> Named | None:
        """Parameter or buffer that a tensor is, or is a part of."""
        return self._graph.parameter(view) if view.storage in self._graph.named else None

    def blank(self, view: View) -> bool | None:
        """Whether a tensor is 0, if it is made only of constants and noise; None otherwise."""
        memory = self._memories.get(view.storage)
        return None if memory is None else memory.blank(view)

    def _blank(self, view: View) -> Pattern | None:
        zero = self.blank(view)
        return None if zero is None or not view.shape else _constant(view, zero)

    def write(self, view: View, pattern: Pattern | None) -> None:
        """Record the channels of a tensor that an operation returned or wrote to."""
        if view.storage in self._graph.named:
            return
        if view.storage not in self._memories:
            if pattern is None:
                return
            self._memories[view.storage] = Memory(view)
        self._memories[view.storage].write(view, pattern)

    def write_blank(self, view: View, zero: bool) -> None:
        """Record that a tensor is a constant or noise, whose size may follow other tensors'."""
        if view.shape:
            self.write(view, _constant(view, zero))

    def _seen(self, view: View) -> Pattern | None:
        memory = self._memories.get(view.storage)
        if memory is None:
            return None
        if not memory.fits(view):
            self.hold_labels(memory.labels())
            return None
        pattern = memory.read(view, self.channels, str(self._operation))
        return pattern if pattern is not None and any(label > 0 for label in pattern.labels) else None

    # Channels

    def hold(self, pattern: Pattern | None, reason: str | None = None) -> None:
        """Hold the channels of a tensor, because of the operation."""
        if pattern is not None:
            self.hold_labels(pattern.labels, reason)

    def hold_labels(self, labels: Iterable[int], reason: str | None = None) -> None:
        """Hold channels, because of the operation."""
        if self._counts():
            self.channels.hold(labels, str(self._operation) if reason is None else reason)

    def tie(self, a: Sequence[int], b: Sequence[int]) -> bool:
        """Tie channels pairwise; held ones hold the others, in parts that count."""
        if len(a) != len(b):
            self.hold_labels((*a, *b))
            return False
        if a != b:
            for one, other in zip(a, b, strict=True):
                if (one and other) or self._counts():
                    self.channels.tie(one, other, str(self._operation))
        return True

    def consume(self, pattern: Pattern | None, weight: View, dimension: int) -> bool:
        """Let a dimension of a weight read channels: its columns are removed with them if their input is 0 then."""
        axis, labels = self.axis(weight, dimension), self.weight(weight, dimension)
        if labels is None or axis is None:
            return False
        if pattern is None:
            self.hold_labels(labels, f"{self._operation} reads channels that stay")
            return True
        self.tie(pattern.labels, labels)
        self.check_zero(pattern)
        self.note_reader(axis)
        return True

    def note_reader(self, axis: Axis) -> None:
        """Record that a dimension of a weight reads channels; a weight used in both orientations stays whole."""
        for other in self.read:
            if other.name == axis.name and other.axis != axis.axis:
                for each in (axis, other):
                    self.hold_labels(self.axes[each], f"{self._operation} uses {axis.name} the other way round")
        self.read.add(axis)

    def check_zero(self, pattern: Pattern) -> None:
        """Hold channels that aren't 0 where γ and β are, since the operation depends on their value."""
        left = [label for label, zero in zip(pattern.labels, pattern.zero, strict=True) if not zero]
        self.hold_labels(left, f"{self._operation} reads something else than 0 where γ and β are 0")

    def convolution_module(self, weight: View, groups: int) -> str | None:
        """Name of the module that runs a convolution and stores the number of its groups."""
        named = self.named(weight)
        for call in reversed(self._operation.calls):
            if isinstance(call.module, _CONVOLUTIONS) and named and f"{call.name}.weight" in named.names:
                return call.name if call.module.groups == groups else None
        return None

    def _keep(self, named: Named) -> None:
        """Hold all channels of a parameter."""
        if self._counts() or named.names[0] in self._whole:
            self._whole.add(named.names[0])
            for axis, labels in self.axes.items():
                if axis.name == named.names[0]:
                    self.channels.hold(labels, f"{self._operation} works on {axis.name}")

    def _counts(self) -> bool:
        return self._only is None or any(call.name in self._only for call in self._operation.calls)


def _constant(view: View, zero: bool) -> Pattern:
    return Pattern(0, (BLANK,) * view.shape[0], (zero,) * view.shape[0])
