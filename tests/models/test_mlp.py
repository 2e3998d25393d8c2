"""The MLP against its formula, and its refusals."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from syncbn.models.mlp import MLP

OPTIONS = {"num_classes": 3, "in_channels": 2, "image_size": (3, 4), "hidden_size": 8, "depth": 2}


def images() -> Tensor:
    return torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("after", [False, True])
def test_it_is_its_formula(activation: str, after: bool) -> None:
    torch.manual_seed(0)
    net = MLP("batch", activation=activation, norm_after_activation=after, **OPTIONS)
    act = getattr(torch, activation)
    weights = dict(net.named_parameters())
    x = images().flatten(1)
    for i in range(2):
        y = F.linear(x, weights[f"linears.{i}.weight"], weights.get(f"linears.{i}.bias"))
        x = (
            F.batch_norm(act(y), None, None, training=True)
            if after
            else act(F.batch_norm(y, None, None, training=True))
        )
    torch.testing.assert_close(net(images()), F.linear(x, weights["fc.weight"], weights["fc.bias"]))


@pytest.mark.parametrize(("norm", "after", "biases"), [("batch", False, 0), ("none", False, 2), ("batch", True, 2)])
def test_biases_are_where_no_norm_adds_one(norm: str, after: bool, biases: int) -> None:
    net = MLP(norm, norm_after_activation=after, **OPTIONS)
    assert sum(linear.bias is not None for linear in net.linears) == biases


def test_weights_start_with_the_gain_that_was_asked_for() -> None:
    torch.manual_seed(0)
    net = MLP("none", hidden_size=400, depth=1, image_size=20, init_gain=0.5)
    assert net.linears[0].weight.std().item() == pytest.approx(0.5 / math.sqrt(400), rel=0.02)


def test_every_hidden_layer_of_a_window_norm_knows_what_feeds_it() -> None:
    net = MLP("cross_iteration", **OPTIONS)
    assert all(norm.is_attached for norm in net.norms)


@pytest.mark.parametrize(("option", "value"), [("depth", 0), ("activation", "gelu"), ("init_gain", 0.0)])
def test_it_refuses(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        MLP(**{**OPTIONS, option: value})
