"""A small network, and queries of its recorded passes, for tests of recording."""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from syncbn.norm.surgery.graph import Graph, Operation

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution and a norm, with `after` between the two and `beside` in addition."""

    def __init__(
        self, after: Callable[[Tensor], Any] = lambda y: y, beside: Callable[[Tensor], Any] = lambda y: None
    ) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.after, self.beside = after, beside

    def forward(self, x: Tensor) -> Any:
        y = self.after(self.conv(x))
        self.beside(y)
        return self.norm(y)


def kinds(operations: list[Operation]) -> list[str]:
    return [op.kind for op in operations]


def makers(graph: Graph, name: str = "norm") -> list[str]:
    """Makers of a norm's input."""
    (call,) = [call for call in graph.calls if call.name == name]
    return kinds(graph.makers(call.inputs[0].storage, call.start))


def users(graph: Graph) -> list[str]:
    """Uses of the convolution's output other than the norm."""
    (conv,) = [call for call in graph.calls if call.name == "conv"]
    (norm,) = [call for call in graph.calls if call.name == "norm"]
    touching = graph.touching(conv.outputs[0].storage)
    return kinds([op for op in touching if not norm.holds(op) and not conv.holds(op)])


CONSTANT = torch.full((4, 1, 1), 2.0)


@dataclasses.dataclass
class Result:
    first: Any
    second: Any


class Named(OrderedDict[str, Any]):
    pass
