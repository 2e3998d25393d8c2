"""Norms that a model holds otherwise than as children: they follow their conversion, or are named in a warning."""

import functools
import types
import warnings
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import syncbn

X = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", "norm other")


def by_halves(x: Tensor) -> Tensor:
    return torch.cat([functional.batch_norm(part, None, None, training=True) for part in x.split(2)])


class Holding(nn.Module):
    """Calls its norm by an attribute that isn't the norm."""

    def __init__(self, held: Callable[[nn.Module], Any], used: Callable[[Any], Any]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.held, self.used = held(self.norm), used

    def forward(self, x: Tensor) -> Any:
        return self.used(self.held)(x)


def itself(held: Any) -> Any:
    return held


FOLLOWING: dict[str, tuple[Any, Any]] = {
    "partial": (functools.partial, itself),
    "partial of a method": (lambda norm: functools.partial(norm.forward), itself),
    "argument of a partial": (lambda norm: functools.partial(lambda norm, x: norm(x), norm), itself),
    "keyword of a partial": (lambda norm: functools.partial(lambda x, norm: norm(x), norm=norm), itself),
    "ordered dict": (lambda norm: OrderedDict(a=norm), lambda held: held["a"]),
    "default dict": (lambda norm: defaultdict(list, a=[norm]), lambda held: held["a"][0]),
    "deque": (lambda norm: deque([norm]), lambda held: held[0]),
}
STAYING: dict[str, tuple[Any, Any]] = {
    "held (function)": (lambda norm: lambda x: norm(x), itself),
    "held[0] (function)": (lambda norm: [lambda x, norm=norm: norm(x)], lambda held: held[0]),
    "held['a'] (function)": (lambda norm: {"a": lambda x, *, norm=norm: norm(x)}, lambda held: held["a"]),
    "held (set)": (lambda norm: {norm}, lambda held: next(iter(held))),
    "held.norm (SimpleNamespace)": (lambda norm: types.SimpleNamespace(norm=norm), lambda held: held.norm),
    "held() (weak reference)": (weakref.ref, lambda held: held()),
    "held[0] (Pair)": (lambda norm: Pair(norm, None), lambda held: held.norm),
}


@pytest.mark.parametrize("way", FOLLOWING)
def test_what_follows(way: str) -> None:
    model = Holding(*FOLLOWING[way])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        syncbn.convert(model, "ghost", ghost_batch_size=2)
        torch.testing.assert_close(model(X), by_halves(X), rtol=1e-4, atol=1e-4)
        syncbn.revert(model)
    torch.testing.assert_close(model(X), functional.batch_norm(X, None, None, training=True), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", STAYING)
def test_what_stays_is_named(way: str) -> None:
    model = Holding(*STAYING[way])
    with pytest.warns(UserWarning, match="still holds norm as it was") as told:
        syncbn.convert(model, "ghost", ghost_batch_size=2)
    assert [str(warning.message).startswith(f"{way} still") for warning in told] == [True]
    torch.testing.assert_close(model(X), functional.batch_norm(X, None, None, training=True), rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        syncbn.revert(model)


def test_what_was_made_of_a_converted_layer_is_named_by_revert() -> None:
    model = nn.Sequential(syncbn.convert(nn.BatchNorm2d(4), "sync"))
    norm = model[0]
    model.run = lambda x: norm(x)
    with pytest.warns(UserWarning, match=r"run \(function\) still holds 0"):
        syncbn.revert(model)


def test_hooks_that_call_a_norm_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    norm = model[1]
    model[0].register_forward_hook(lambda module, args, output: norm(output))
    with pytest.warns(UserWarning, match=r"a forward hook of 0 \(function\) still holds 1"):
        syncbn.convert(model, "sync")


GLOBAL = nn.BatchNorm2d(4)


def test_a_function_that_calls_a_global_norm_is_named() -> None:
    model = nn.Sequential(GLOBAL)
    model.run = lambda x: GLOBAL(x)
    with pytest.warns(UserWarning, match=r"run \(function\) still holds 0"):
        syncbn.convert(model, "sync")


@pytest.mark.parametrize("held", [lambda norm: [[norm]], lambda norm: {"a": [norm]}, lambda norm: {norm}])
def test_norms_deeper_in_containers_are_said(held: Callable[[nn.Module], Any]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    model.others = held(nn.BatchNorm2d(4))
    with pytest.warns(UserWarning, match=r"others\S* is in a plain (list|set)") as told:
        syncbn.convert(model, "sync")
    assert len(told) == 1


class Quiet(nn.Module):
    """Holds much, and nothing that a conversion doesn't reach."""

    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.through_self = lambda x: self.norm(x)
        self.parents = [parent]
        self.cycle: list[Any] = [1, "a", None, torch.ones(2), nn.ReLU()]
        self.cycle.append(self.cycle)
        self.unset = self._unset()

    def _unset(self) -> Any:
        def inner() -> Any:
            return later

        if inner is None:
            later = 1
        return inner

    def stream(self) -> None:
        raise AssertionError("a property is not looked at")


def test_nothing_is_said_of_what_follows_by_itself() -> None:
    parent = nn.Sequential(nn.BatchNorm2d(4))
    child = Quiet(parent)
    parent.append(child)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        syncbn.convert(child, "sync")
        syncbn.convert(parent, "sync")
        syncbn.revert(parent)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training)


class Standardized(nn.Conv2d):
    """A convolution that standardizes its weight by batch_norm, as timm's, which is no batch normalization."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        return functional.conv2d(x, functional.batch_norm(flat, None, None, training=True).view_as(self.weight))


def test_a_call_of_batch_norm_is_named_without_an_example() -> None:
    with pytest.warns(UserWarning, match=r"1 \(Functional\) calls batch_norm itself") as told:
        syncbn.convert(nn.Sequential(Standardized(4, 4, 1), Functional()), "sync")
    assert len(told) == 1


class KeepsNormsInEvaluation(nn.Sequential):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        return self


class ChoosesParameters(nn.Sequential):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.count = sum(isinstance(layer, nn.BatchNorm2d) for layer in self)

    def parameters_of_norms(self) -> list[nn.Parameter]:
        return [p for layer in self.modules() if type(layer) is nn.BatchNorm2d for p in layer.parameters()]


@pytest.mark.parametrize("cls", [KeepsNormsInEvaluation, ChoosesParameters])
def test_methods_that_ask_for_torchs_classes_are_named(cls: type[nn.Sequential]) -> None:
    """They would pass the converted layers over: frozen ones would train, and others be left out of an optimizer."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), cls(nn.BatchNorm2d(4)))
    with pytest.warns(
        UserWarning, match=f"^{cls.__name__}.(train|parameters_of_norms) asks for layers of torch's Batch"
    ):
        syncbn.convert(model, "sync")
    syncbn.convert(model, "torch")


def test_nothing_is_said_of_methods_that_ask_for_their_base() -> None:
    class Model(nn.Sequential):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            for layer in self.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
            return self

    model = syncbn.convert(Model(nn.BatchNorm2d(4)), "sync").train()
    assert not model[0].training
