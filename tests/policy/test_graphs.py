"""Policies that act by the calls of layers, on graphs that compute without calling them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import syncbn

X = torch.randn(8, 3, 6, 6)
GRAPHS: dict[str, Callable[[nn.Module], Any]] = {
    "scripted": torch.jit.script,
    "traced": lambda net: torch.jit.trace(net.eval(), X),
    "exported": lambda net: torch.export.export(net, (X,)).module(),
    "a part": lambda net: nn.Sequential(torch.jit.trace(net.eval(), X), nn.BatchNorm2d(4)),
}
POLICIES: dict[str, Callable[[nn.Module], Any]] = {
    "freeze": syncbn.freeze,
    "recalibrate": lambda model: syncbn.recalibrate(model, [X]),
    "adapt": lambda model: syncbn.adapt(model, method="batch"),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.(script|trace)(_method)?` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_policy_that_would_have_no_effect_is_refused(graph: str, policy: str) -> None:
    model = GRAPHS[graph](net())
    with pytest.raises(ValueError, match=rf"1 is in a \w+, a graph that computes without calling it: {policy} the"):
        POLICIES[policy](model)


def test_layers_beside_a_graph_are_frozen() -> None:
    model = GRAPHS["a part"](net())
    syncbn.freeze(model, exclude="0.*")
    before = model[1].running_mean.clone()
    model(X)
    assert torch.equal(model[1].running_mean, before)


def test_a_graph_that_calls_its_layers_is_frozen() -> None:
    model = syncbn.freeze(torch.fx.symbolic_trace(net()))
    before = model.get_submodule("1").running_mean.clone()
    model(X)
    assert torch.equal(model.get_submodule("1").running_mean, before)


@pytest.mark.parametrize("inspect", [lambda model: syncbn.inspect(model, [X]), lambda model: syncbn.verify(model, X)])
@pytest.mark.parametrize("graph", ["scripted", "traced"])
def test_layers_of_a_graph_can_not_be_watched(graph: str, inspect: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(ValueError, match="before it is scripted"):
        inspect(GRAPHS[graph](net()))
