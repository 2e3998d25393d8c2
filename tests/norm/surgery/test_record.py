"""The recorder sees all that a model computes, wherever it is called from, without side effects."""

import copy
import gc
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm

from syncbn.models.resnet import resnet152
from syncbn.norm.surgery.record import record
from tests.norm.surgery.passes import CONSTANT, Named, Net, Result, X, kinds, makers, users


def test_a_chain_of_modules_with_names_and_numbers() -> None:
    graph = record(Net(), X)
    assert [(call.name, call.index) for call in graph.calls] == [("", 0), ("conv", 0), ("norm", 0)]
    (convolution,) = [op for op in graph.operations if op.kind == "convolution"]
    assert [call.name for call in convolution.calls] == ["", "conv"]
    assert convolution.function is torch.conv2d
    named = graph.parameter(convolution.args[1])
    assert named is not None
    assert named.names == ("conv.weight",)
    assert makers(graph) == ["convolution"]
    assert users(graph) == []


def test_the_modules_are_those_of_the_model_and_a_shared_one_counts() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Sequential(shared, shared))
    graph = record(model, X)
    assert [call.index for call in graph.calls_of(shared)] == [0, 1, 2]
    assert graph.calls[0].module is model


WRITES: list[tuple[str, Callable[[Tensor], Any], list[str]]] = [
    ("a slice", lambda y: y.__setitem__((slice(None), slice(None), 0), 0), ["fill_"]),
    ("a channel", lambda y: y[:, 1].mul_(2), ["mul_"]),
    ("through a chain of views", lambda y: y.permute(0, 2, 3, 1)[0].unbind(0)[1].zero_(), ["zero_"]),
    ("through data", lambda y: y.data.add_(1), ["add_"]),
    ("through detach", lambda y: y.detach().relu_(), ["relu_"]),
    ("an out= argument", lambda y: torch.add(y, 1, out=y), ["add"]),
    ("by an index", lambda y: y.index_fill_(1, torch.tensor([0]), 0.0), ["index_fill_"]),
]


@pytest.mark.parametrize(
    ("name", "write", "expected"), WRITES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_writes_in_place_are_seen(name: str, write: Callable[[Tensor], Any], expected: list[str]) -> None:
    assert makers(record(Net(beside=write), X)) == ["convolution", *expected]


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * x.sigmoid()


class ByNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.detach().numpy()))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x


class Labelled(torch.Tensor):
    """A subclass with the default behaviour."""


READS: list[tuple[str, Callable[[Tensor], Any], str]] = [
    ("TorchScript", lambda y: scripted(y), "sigmoid"),
    ("an autograd function", lambda y: Doubled.apply(y), "mul"),
    ("numpy in an autograd function", lambda y: ByNumpy.apply(y), "numpy"),
    ("numpy.asarray", lambda y: np.asarray(y), "__array__"),
    ("tolist", lambda y: y.tolist(), "tolist"),
    ("item", lambda y: float(y.mean()), "mean"),
    ("a branch", lambda y: bool((y > 0).any()), "gt"),
    ("a pointer", lambda y: y.data_ptr(), "data_ptr"),
    ("its storage", lambda y: y.untyped_storage(), "untyped_storage"),
    ("deepcopy", lambda y: copy.deepcopy(y), "copy_"),
    ("DLPack", lambda y: torch.from_dlpack(y), "__dlpack__"),
    ("a subclass", lambda y: y.as_subclass(Labelled).sum(), "sum"),
    ("vmap", lambda y: torch.vmap(torch.sum)(y), "sum"),
    ("another thread", lambda y: threaded(lambda: y + 1), ""),
]


def threaded(work: Callable[[], Any]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.parametrize(("name", "read", "expected"), READS, ids=lambda value: value if isinstance(value, str) else "")
def test_whoever_reads_is_seen(name: str, read: Callable[[Tensor], Any], expected: str) -> None:
    found = users(record(Net(beside=read), X))
    assert expected in found or (expected == "" and not found)  # torch's modes don't reach other threads


def test_hooks_and_parametrizations_are_seen() -> None:
    hooked = Net()
    hooked.conv.register_forward_hook(lambda module, args, output: 2 * output)
    assert makers(record(hooked, X)) == ["mul"]
    observed = Net()
    observed.conv.register_forward_hook(lambda module, args, output: print(output.mean(), end=""))
    assert "mean" in users(record(observed, X))
    for change in (spectral_norm, parametrizations.weight_norm):
        changed = Net()
        change(changed.conv)
        graph = record(changed, X)
        (convolution,) = [op for op in graph.operations if op.kind == "convolution"]
        assert graph.parameter(convolution.args[1]) is None  # computed, and so neither a parameter nor a view of one


def test_what_works_in_place_after_the_norm_is_not_between() -> None:
    graph = record(nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), act=nn.ReLU(True))), X)
    assert makers(graph) == ["convolution"]
    assert users(graph) == []


class Opaque:
    """An opaque container."""

    __slots__ = ("get",)

    def __init__(self, value: Any) -> None:
        self.get = lambda: value


CONTAINERS: list[Callable[[Any], Any]] = [
    lambda y: (y, y),
    lambda y: {"a": [y]},
    lambda y: Result(y, None),
    lambda y: Named(a=y),
    lambda y: Opaque(y),
    lambda y: iter([y]),
    lambda y: lambda: y,
]


@pytest.mark.parametrize("wrap", CONTAINERS)
def test_whatever_container_returns_a_tensor_it_is_kept(wrap: Callable[[Any], Any]) -> None:
    class Returns(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.conv(x)
            self.norm(y)
            return wrap(y)

    graph = record(Returns(), X)
    (conv,) = [call for call in graph.calls if call.name == "conv"]
    (norm,) = [call for call in graph.calls if call.name == "norm"]
    assert conv.outputs[0].storage in graph.kept
    assert norm.outputs[0].storage not in graph.kept


def test_what_is_put_aside_is_kept() -> None:
    aside: list[Tensor] = []
    net = Net(beside=lambda y: aside.append(y[:1].view(-1)))
    graph = record(net, X)
    (conv,) = [call for call in graph.calls if call.name == "conv"]
    assert conv.outputs[0].storage in graph.kept
    net = Net()

    def circle(y: Tensor) -> None:
        loop: list[Any] = [y]
        loop.append(loop)

    gc.disable()
    try:
        net.beside = circle
        graph = record(net, X)
    finally:
        gc.enable()
    (conv,) = [call for call in graph.calls if call.name == "conv"]
    assert conv.outputs[0].storage not in graph.kept, "a circle of references isn't somebody who keeps it"


def from_outside(y: Tensor) -> Tensor:
    """Make a tensor outside torch, as an extension would."""
    with torch._C._DisableTorchDispatch():
        return y.clone()


def test_a_tensor_of_unknown_origin_may_derive_from_everything_before() -> None:
    graph = record(Net(beside=lambda y: from_outside(y) + 1), X)
    (conv,) = [call for call in graph.calls if call.name == "conv"]
    assert graph.has_unseen_after(conv.start)
    assert not graph.has_unseen_after(len(graph.operations))


def test_constants_are_of_known_origin() -> None:
    class Constants(Net):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.several = torch.ones(1), {"a": [torch.ones(1)]}

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x)) * CONSTANT + self.plain * self.several["a"][0]
            return y * torch.tensor(2.0) + torch.as_tensor(np.ones(1, dtype=np.float32)) + y[:, :, [0]]

    assert record(Constants(), X).unseen == {}


def test_functions_without_an_operator_are_noted() -> None:
    graph = record(Net(after=lambda y: F.dropout(y, training=False)), X)
    (call,) = graph.calls_of(graph.calls[2].module)
    giver = graph.giver(call.inputs[0], call.start)
    assert giver is not None
    assert giver.function is F.dropout
    assert makers(graph) == ["convolution"]


def test_views_of_parameters_are_found_by_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(4, 3, bias=False)
            self.twin = self.encoder

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.encoder(x), self.encoder.weight.t())

    graph = record(Tied(), torch.randn(2, 4))
    used = [graph.parameter(op.args[1]) for op in graph.operations if op.kind == "mm"]
    assert [named.names for named in used if named] == [("encoder.weight", "twin.weight")] * 2


@pytest.mark.parametrize("size", [32])
def test_a_large_network_is_recorded(size: int) -> None:
    graph = record(resnet152("batch", num_classes=10, width=8), torch.randn(1, 3, size, size))
    assert kinds(graph.operations).count("native_batch_norm") == 155
    assert len(graph.kept) == 1
