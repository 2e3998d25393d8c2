"""Group normalization of inputs for which its groups are too small."""

import math
import warnings

import pytest
import torch
from torch.nn import functional as F

import syncbn


@pytest.mark.parametrize(
    ("options", "shape", "values", "hint"),
    [
        ({}, (4, 64), "two", r"\(norm=group, groups=16\) or another norm"),  # features, as in an MLP
        ({}, (4, 32), "one", "groups=8"),
        ({"groups": 4}, (2, 8, 1, 1), "two", "groups=2"),
        ({"groups": 8}, (2, 8, 1, 2), "two", "groups=4"),
        ({}, (2, 3, 1, 1), "one", "take another norm"),
    ],
)
def test_groups_of_one_or_two_values_are_told(
    options: dict[str, int], shape: tuple[int, ...], values: str, hint: str
) -> None:
    layer, x = syncbn.norm_layer("group", **options)(shape[1]), torch.arange(float(math.prod(shape))).view(shape)
    x.requires_grad_()
    with pytest.warns(UserWarning, match=f"has {values} values? in each.*{hint}"):
        y = layer(x)
    normalized = y.detach().abs()  # as the warning says
    torch.testing.assert_close(normalized, torch.full_like(normalized, values == "two"), rtol=0, atol=0.01)
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 0.01


def test_one_value_of_one_sample_is_refused_with_what_to_take() -> None:
    with pytest.raises(ValueError, match=r"one value in each: it becomes 0.*groups=8"):
        syncbn.norm_layer("group")(32)(torch.randn(1, 32))


@pytest.mark.parametrize("shape", [(4, 96), (4, 64, 2), (0, 64, 3)])
def test_larger_groups_are_not(shape: tuple[int, ...]) -> None:
    layer, x = syncbn.norm_layer("group")(shape[1]), torch.randn(*shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(layer(x), F.group_norm(x, 32))


def test_it_is_still_scripted_traced_and_compiled() -> None:
    layer, x = syncbn.norm_layer("group")(64), torch.randn(2, 64, 3)
    for other in (torch.jit.script(layer), torch.fx.symbolic_trace(layer), torch.compile(layer, fullgraph=True)):
        torch.testing.assert_close(other(x), layer(x))
