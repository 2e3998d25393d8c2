"""FRN and its threshold against the formula, position by position."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import syncbn
from syncbn.models.resnet import resnet18
from syncbn.norm.filter_response import FilterResponseNorm

SHAPES = [(3, 4), (3, 4, 5), (3, 4, 5, 2), (2, 4, 3, 2, 2), (3, 4, 1, 1)]


def random_layer(**options: Any) -> FilterResponseNorm:
    layer = FilterResponseNorm(4, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def by_formula(layer: FilterResponseNorm, x: Tensor) -> Tensor:
    """One sample and channel at a time."""
    out = torch.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = x[n, c].reshape(-1)
            eps = layer.eps + (0 if layer.learned_eps is None else abs(layer.learned_eps[c]))
            y = x[n, c] / (sum(v * v for v in values) / len(values) + eps) ** 0.5
            if layer.weight is not None:
                y = y * layer.weight[c] + layer.bias[c]
            if layer.threshold is not None:
                y = torch.where(y > layer.threshold[c], y, layer.threshold[c])
            out[n, c] = y
    return out


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"tlu": False}, {"eps": 0.1}], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    layer, x = random_layer(**options), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = by_formula(layer, x)
    torch.testing.assert_close(layer(x), expected)
    inputs = (x, *layer.parameters())
    dy = torch.randn_like(x)
    for got, target in zip(
        torch.autograd.grad(layer(x), inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True
    ):
        torch.testing.assert_close(got, target)
    torch.testing.assert_close(layer.eval()(x), expected)


def test_a_fixed_eps_equals_the_formula() -> None:
    layer, x = random_layer(learnable_eps=False), torch.randn(3, 4, 5, 2, dtype=torch.float64)
    assert len(list(layer.parameters())) == 3
    torch.testing.assert_close(layer(x), by_formula(layer, x))


def test_it_starts_as_the_paper_does() -> None:
    start = {"weight": 1.0, "bias": 0.0, "threshold": 0.0, "learned_eps": 1e-4}
    layer = FilterResponseNorm(4)
    assert {name for name, _ in layer.named_parameters()} == set(start)
    for name, parameter in layer.named_parameters():
        assert parameter.tolist() == pytest.approx([start[name]] * 4)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1, 1)])
def test_a_single_position_needs_the_learned_eps(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"single position a channel.*set learnable_eps=True"):
        FilterResponseNorm(4, learnable_eps=False)(torch.randn(shape))
    layer = FilterResponseNorm(4, tlu=False).double()
    layer.learned_eps.data.fill_(3.0)
    x = torch.full(shape, 2.0, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer(x), torch.full(shape, 2 / 7**0.5).double(), rtol=1e-6, atol=0)
    layer(x).sum().backward()
    assert layer.learned_eps.grad.abs().min() > 0.01, "ε learns"
    assert x.grad.min() > 0.1, "the sign alone would have no gradient"


def test_a_residual_network_with_one_pixel_at_the_end_trains() -> None:
    torch.manual_seed(0)
    net = resnet18("filter_response", num_classes=3, in_channels=1, stem="cifar", width=4)
    images, labels = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_of_any_size(dtype: torch.dtype) -> None:
    layer = FilterResponseNorm(4)
    x = (torch.randn(3, 4, 5, 2) * 3000).to(dtype)  # squares are infinite in float16
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), layer(x.float()), rtol=1e-2, atol=1e-2)


def test_samples_do_not_see_each_other_and_layouts_are_kept() -> None:
    layer, x = random_layer(), torch.randn(3, 4, 5, 2, dtype=torch.float64)
    torch.testing.assert_close(torch.cat([layer(sample) for sample in x.split(1)]), layer(x))
    assert layer(x.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    assert layer(x[:0]).shape == (0, 4, 5, 2)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(random_layer(), torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="eps must be greater than 0"):
        syncbn.norm_layer("filter_response", eps=-1e-6)(4)
    with pytest.raises(ValueError, match="expected 4 channels in dimension 1"):
        FilterResponseNorm(4)(torch.randn(2, 5, 4))
