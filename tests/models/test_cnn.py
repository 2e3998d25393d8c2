"""The small convolutional network against its formula, and its refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncbn.models.cnn import CNN


def images() -> Tensor:
    return torch.randn(5, 2, 12, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("after", [False, True])
def test_it_is_its_formula(activation: str, after: bool) -> None:
    torch.manual_seed(0)
    net = CNN("batch", 3, in_channels=2, width=4, activation=activation, norm_after_activation=after)
    act = getattr(torch, activation)
    weights = dict(net.named_parameters())
    x, channels, sides = images(), [], []
    for i, stride in enumerate((2, 1, 2, 1)):
        y = F.conv2d(x, weights[f"convs.{i}.weight"], weights.get(f"convs.{i}.bias"), stride, padding=1)
        channels.append(y.shape[1])
        sides.append(tuple(y.shape[2:]))
        if after:
            x = F.batch_norm(act(y), None, None, training=True)
        else:
            x = act(F.batch_norm(y, None, None, training=True))
    assert channels == [4, 4, 8, 8]
    assert sides == [(6, 5), (6, 5), (3, 3), (3, 3)]
    expected = F.linear(x.mean(dim=(2, 3)), weights["fc.weight"], weights["fc.bias"])
    torch.testing.assert_close(net(images()), expected)


@pytest.mark.parametrize(("norm", "after", "biases"), [("batch", False, 0), ("none", False, 4), ("batch", True, 4)])
def test_biases_are_where_no_norm_adds_one(norm: str, after: bool, biases: int) -> None:
    net = CNN(norm, norm_after_activation=after)
    assert sum(conv.bias is not None for conv in net.convs if isinstance(conv, nn.Conv2d)) == biases


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2.0), ("sigmoid", 1.0), ("tanh", (5 / 3) ** 2)])
def test_weights_start_with_the_deviation_that_suits_the_activation(activation: str, gain: float) -> None:
    torch.manual_seed(0)
    net = CNN("batch", width=128, depth=2, activation=activation)
    assert float(net.get_parameter("convs.1.weight").detach().var()) == pytest.approx(gain / (9 * 128), rel=0.02)


def test_every_window_norm_knows_what_feeds_it() -> None:
    assert all(norm.is_attached for norm in CNN("cross_iteration").norms)


@pytest.mark.parametrize(("option", "value"), [("depth", 0), ("width", 0), ("activation", "gelu"), ("norm", "batsch")])
def test_it_refuses(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=str(option) if option != "norm" else "did you mean 'batch'"):
        CNN(**{option: value})
    with pytest.raises(ValueError, match=r"expected an input \(N, 1, H, W\)"):
        CNN()(torch.zeros(1, 3, 8, 8))
