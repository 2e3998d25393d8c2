"""Which channels of a network's layers have to be the same ones: what residual sums and concatenations tie together."""

import torch
from torch import Tensor, nn

from syncbn.norm.core.capabilities import is_per_channel
from syncbn.norm.surgery.trace import Operation, Trace, tensors_in

Labels = list[int]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Functions that treat channels alike and apart, by name: y_c is a function of x_c.
_CHANNELWISE = frozenset(
    """
    relu relu6 gelu silu sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu softplus square abs
    dropout dropout2d contiguous clone detach float interpolate
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d
    add radd iadd mul rmul imul sub rsub isub
    """.split()  # noqa: SIM905 (a list of them would be a page)
)


class Channels:
    """A number for each channel of each tensor, the same where channels are tied.

    Attributes:
        inputs: of each convolution, linear layer and batch norm, the numbers of the channels it takes.
        outputs: of each of them, the numbers of the channels it returns.
    """

    def __init__(self, seen: Trace) -> None:
        self._parents: list[int] = []
        self._fixed: set[int] = set()
        self._of: dict[int, Labels] = {}  # by the identity of a tensor
        self.inputs: dict[nn.Module, Labels] = {}
        self.outputs: dict[nn.Module, Labels] = {}
        ends = {id(call.output): call for call in seen.calls if _is_known(call.module)}
        for operation in seen.operations:
            inner = next((module for module in operation.modules if _is_known(module)), None)
            call = ends.get(id(operation.output))
            if inner is None:
                self._pass(operation)
            elif call is not None and call.module is inner:
                self._layer(inner, call.input, call.output)
        for tensor in tensors_in(seen.output):
            self._fix(self._labels(tensor))

    def root(self, label: int) -> int:
        """The number of a channel, in its final form."""
        while self._parents[label] != label:
            label = self._parents[label]
        return label

    def fixed_roots(self) -> set[int]:
        """The numbers of all channels that must stay."""
        return {self.root(label) for label in self._fixed}

    def _layer(self, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        taken = self._labels(x)
        if layer in self.inputs:  # called again: the same channels
            self._tie(self.inputs[layer], taken)
            self._of[id(y)] = self.outputs[layer]
            return
        if is_prunable_norm(layer):
            returned = taken
        elif isinstance(layer, nn.Linear):
            returned = self._new(y) if y.dim() == 2 else self._unknown(x, y)
        elif layer.groups == 1:
            returned = self._new(y)
        elif layer.groups == x.shape[1] == y.shape[1]:
            returned = taken  # depthwise
        else:
            returned = self._unknown(x, y)
        self.inputs[layer], self.outputs[layer] = taken, returned
        self._of[id(y)] = returned

    def _pass(self, operation: Operation) -> None:
        y = operation.output
        used = [t for t in tensors_in((operation.args, operation.kwargs)) if id(t) in self._of or t.dim() > 1]
        if not isinstance(y, Tensor) or not used:
            for tensor in (*used, *tensors_in(y)):
                self._fix(self._labels(tensor))
            return
        name = operation.function.__name__.strip("_")
        whole = [t for t in used if t.dim() > 1]
        alike = name in _CHANNELWISE and all(t.dim() == y.dim() and t.shape[1] == y.shape[1] for t in whole)
        if whole and (alike or (name in ("mean", "amax") and _keeps_channels(operation))):
            labels = self._labels(whole[0])
            for other in whole[1:]:
                self._tie(labels, self._labels(other))
            self._of[id(y)] = labels
        elif name in ("cat", "concat", "concatenate") and _dimension(operation, 0) in (1, 1 - y.dim()):
            self._of[id(y)] = [label for t in used for label in self._labels(t)]
        elif name == "flatten" and _dimension(operation, 0) == 1 and y.dim() == 2:
            times = y.shape[1] // used[0].shape[1]
            self._of[id(y)] = [label for label in self._labels(used[0]) for _ in range(times)]
        else:
            for tensor in used:
                self._fix(self._labels(tensor))
            self._fix(self._labels(y))

    def _unknown(self, x: Tensor, y: Tensor) -> Labels:
        self._fix(self._labels(x))
        labels = self._new(y)
        self._fix(labels)
        return labels

    def _labels(self, tensor: Tensor) -> Labels:
        if id(tensor) not in self._of:  # from outside, such as the input
            labels = self._new(tensor)
            self._fix(labels)
            self._of[id(tensor)] = labels
        return self._of[id(tensor)]

    def _new(self, tensor: Tensor) -> Labels:
        start = len(self._parents)
        labels = list(range(start, start + (tensor.shape[1] if tensor.dim() > 1 else 0)))
        self._parents += labels
        return labels

    def _tie(self, a: Labels, b: Labels) -> None:
        for one, other in zip(a, b, strict=True):
            self._parents[self.root(one)] = self.root(other)

    def _fix(self, labels: Labels) -> None:
        self._fixed.update(labels)


def _is_known(module: nn.Module) -> bool:
    return isinstance(module, (*CONVOLUTIONS, nn.Linear)) or is_prunable_norm(module)


def _dimension(operation: Operation, default: int) -> int:
    """The dimension that a call of `cat` or `flatten` names."""
    for key in ("dim", "start_dim"):
        if key in operation.kwargs:
            return int(operation.kwargs[key])
    return int(operation.args[1]) if len(operation.args) > 1 and isinstance(operation.args[1], int) else default


def _keeps_channels(operation: Operation) -> bool:
    """Whether `mean` or `amax` goes over positions alone."""
    x = operation.args[0]
    given = operation.kwargs.get("dim", operation.args[1] if len(operation.args) > 1 else None)
    if given is None:
        return False
    dimensions = [d % x.dim() for d in ([given] if isinstance(given, int) else given)]
    return not {0, 1} & set(dimensions)


def is_prunable_norm(module: nn.Module) -> bool:
    """Whether channels can be taken out of a norm: all it has is one number for each."""
    return is_per_channel(module)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a convolution filters each channel by itself."""
    return isinstance(layer, CONVOLUTIONS) and layer.groups == layer.in_channels == layer.out_channels != 1


def kept(labels: Labels, channels: Channels, removed: set[int]) -> Tensor:
    """The places of the channels that stay."""
    return torch.tensor([i for i, label in enumerate(labels) if channels.root(label) not in removed], dtype=torch.long)
