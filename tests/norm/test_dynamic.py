"""DyT and Derf against their formulas, number by number, for both places of the channels."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import syncbn
from syncbn.norm.dynamic_erf import DynamicErf
from syncbn.norm.dynamic_tanh import DynamicTanh

SHAPES = [(3, 4), (3, 4, 5), (3, 4, 5, 2), (2, 4, 3, 2, 2)]


def random_layer(kind: type[nn.Module], **options: Any) -> Any:
    layer = kind(4, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def by_formula(layer: Any, x: float, channel: int) -> float:
    """One number, by the standard library."""
    alpha = layer.alpha.item()
    y = math.tanh(alpha * x) if isinstance(layer, DynamicTanh) else math.erf(alpha * x + layer.shift.item())
    return y if layer.weight is None else y * layer.weight[channel].item() + layer.bias[channel].item()


@pytest.mark.parametrize("kind", [DynamicTanh, DynamicErf])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula(kind: type[nn.Module], shape: tuple[int, ...], affine: bool) -> None:
    layer, x = random_layer(kind, affine=affine), torch.randn(shape, dtype=torch.float64)
    y = layer(x)
    for place in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        assert y[tuple(place)].item() == pytest.approx(by_formula(layer, x[tuple(place)].item(), place[1]), abs=1e-12)
    torch.testing.assert_close(layer.eval()(x), y, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [DynamicTanh, DynamicErf])
def test_channels_may_come_last(kind: type[nn.Module]) -> None:
    first = random_layer(kind)
    last = kind(4, channel_dim=-1).double()
    last.load_state_dict(first.state_dict())
    tokens = torch.randn(3, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(last(tokens), first(tokens.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(last(tokens[:, 0]), first(tokens[:, 0]))
    with pytest.raises(ValueError, match=r"expected 4 channels in dimension -1, got shape \(3, 4, 7\)"):
        last(tokens.transpose(1, 2))


@pytest.mark.parametrize("kind", [DynamicTanh, DynamicErf])
def test_it_starts_as_the_papers_do(kind: type[nn.Module]) -> None:
    start = {name: set(p.tolist()) for name, p in kind(4).named_parameters()}
    expected = {"alpha": {0.5}, "weight": {1.0}, "bias": {0.0}}
    assert start == (expected if kind is DynamicTanh else expected | {"shift": {0.0}})
    assert kind(4, alpha_init=2).alpha.item() == 2
    assert DynamicErf(4, shift_init=-1).shift.item() == -1


@pytest.mark.parametrize("kind", [DynamicTanh, DynamicErf])
def test_gradcheck(kind: type[nn.Module]) -> None:
    layer = random_layer(kind)
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


@pytest.mark.parametrize("kind", [DynamicTanh, DynamicErf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_and_large_ones(kind: type[nn.Module], dtype: torch.dtype) -> None:
    layer = kind(4)
    y = layer(torch.tensor([[1e4, -1e4, 0.0, 1.0]], dtype=dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y[0, :3].float(), torch.tensor([1.0, -1.0, 0.0]))
    assert y[0, 3].item() == pytest.approx(by_formula(layer, 1.0, 3), rel=1e-2)


@pytest.mark.parametrize("name", ["dynamic_tanh", "dynamic_erf"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_init": 0}, "alpha_init must be greater than 0, got 0; 0.5 is the usual value"),
        ({"channel_dim": 2}, r"channel_dim must be 1, for \(N, C, \*\), or -1, for \(N, L, C\), got 2"),
    ],
)
def test_mistakes(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        syncbn.norm_layer(name, **options)(4)
