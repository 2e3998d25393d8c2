"""RMSNorm equals torch's at every position, for any number of dimensions and layout."""

import warnings

import pytest
import torch
from torch import nn

import syncbn

SHAPES = [(4, 6), (4, 6, 5), (4, 6, 5, 3), (2, 6, 3, 4, 2)]


def layer_and_torch(eps: float = 1e-5) -> tuple[nn.Module, nn.RMSNorm]:
    ours, theirs = syncbn.norm_layer("rms", eps=eps)(6).double(), nn.RMSNorm(6, eps=eps).double()
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_position_equals_torch(shape: tuple[int, ...], eps: float) -> None:
    ours, theirs = layer_and_torch(eps)
    x = torch.randn(shape, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2) if x.dim() > 2 else x
    expected = theirs(tokens)
    expected = expected.transpose(1, 2).reshape(shape) if x.dim() > 2 else expected
    torch.testing.assert_close(ours(x), expected)


def test_the_formula() -> None:
    ours, _ = layer_and_torch()
    x = torch.randn(2, 6, 2, 2, dtype=torch.float64)
    y = ours(x)
    for n, c, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        square = sum(x[n, k, i, j].item() ** 2 for k in range(6)) / 6
        assert y[n, c, i, j].item() == pytest.approx((x[n, c, i, j] / (square + 1e-5) ** 0.5 * ours.weight[c]).item())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_layout_is_kept(shape: tuple[int, ...], channels_last: bool) -> None:
    x = torch.randn(shape)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x
    assert syncbn.norm_layer("rms")(6)(x).stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("half_parameters", [False, True])
def test_half_inputs_of_any_size_keep_their_dtype(dtype: torch.dtype, half_parameters: bool) -> None:
    layer = syncbn.norm_layer("rms")(6)
    x = (torch.randn(4, 6, 5) * 3000).to(dtype)  # squares are infinite in float16
    expected = layer(x.float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = layer.to(dtype if half_parameters else torch.float32)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-2)


def test_without_affine_there_is_nothing_to_train() -> None:
    layer = syncbn.norm_layer("rms", affine=False)(6)
    assert list(layer.parameters()) == []
    torch.testing.assert_close(layer(torch.full((1, 6), 7.0)), torch.ones(1, 6))


def test_gradcheck() -> None:
    ours, _ = layer_and_torch()
    assert torch.autograd.gradcheck(ours, torch.randn(3, 6, 2, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(
    ("options", "x", "error", "message"),
    [
        ({"eps": 0}, torch.ones(2, 6), ValueError, "eps must be greater than 0, got 0"),
        ({}, torch.ones(2, 5, 6), ValueError, r"expected 6 channels in dimension 1, got shape \(2, 5, 6\)"),
        ({}, torch.ones(6), ValueError, r"expected an input \(N, C\)"),
        ({}, torch.ones(2, 6, dtype=torch.long), TypeError, "floating-point"),
    ],
)
def test_mistakes(options: dict[str, float], x: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        syncbn.norm_layer("rms", **options)(6)(x)
