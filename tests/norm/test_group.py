"""Group normalization of inputs for which its groups are too small."""

import math
import warnings

import pytest
import torch
from torch.nn import functional as F

import syncbn


@pytest.mark.parametrize(
    ("norm", "options", "shape", "hint"),
    [
        ("group", {}, (4, 64), "take groups=16"),  # features, as in an MLP: the 32 groups have 2 each
        ("group", {"groups": 4}, (2, 8, 1, 1), "take groups=2"),
        ("group", {"groups": 8}, (2, 8, 1, 2), "take another norm"),
        ("layer", {}, (3, 2), "take another norm"),
        ("instance", {}, (3, 4, 2), "take another norm"),
    ],
)
def test_groups_of_two_values_are_told(norm: str, options: dict[str, int], shape: tuple[int, ...], hint: str) -> None:
    layer, x = (
        syncbn.norm_layer(norm, **options)(shape[1]),
        torch.arange(float(math.prod(shape))).view(shape).requires_grad_(),
    )
    with pytest.warns(UserWarning, match=f"two values in each: they become 1 and -1.*{hint}"):
        y = layer(x)
    groups = y.detach().reshape(shape[0], -1, 2)
    torch.testing.assert_close(groups.abs(), torch.ones_like(groups), rtol=0.01, atol=0)  # as the warning says
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 0.01


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
