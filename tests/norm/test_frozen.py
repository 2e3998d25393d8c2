"""Frozen batch normalization against torch's in evaluation mode, and its effect on optimizers."""

import copy

import pytest
import torch
from torch import Tensor, nn

import syncbn


def trained(norm: type[nn.Module], channels: int = 5, bias: bool = True, **options: bool) -> nn.Module:
    """A layer with non-default statistics and parameters."""
    torch.manual_seed(0)
    layer = norm(channels, **options)
    if not bias:
        layer.bias = None  # as bias=False of torch 2.12 has it
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    shape = {nn.BatchNorm1d: (7,), nn.BatchNorm2d: (4, 3), nn.BatchNorm3d: (2, 3, 2)}[norm]
    layer(torch.randn(6, channels, *shape) * 3 + 2)
    return layer


def bits(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    return y, torch.autograd.grad(y.sin().sum(), x)[0]


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}], ids=str)
@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d, (6, 5)), (nn.BatchNorm2d, (6, 5, 4, 3)), (nn.BatchNorm3d, (2, 5, 3, 2, 2))]
)
def test_it_is_evaluation_mode_to_the_last_bit(
    norm: type[nn.Module], shape: tuple[int, ...], options: dict[str, bool]
) -> None:
    x, original = torch.randn(shape), trained(norm, **options)
    expected = bits(copy.deepcopy(original).eval(), x)
    frozen = syncbn.convert(original, "frozen")
    state = copy.deepcopy(frozen.state_dict())
    for mode in (True, False):
        torch.testing.assert_close(bits(frozen.train(mode), x), expected, rtol=0, atol=0)
    torch.testing.assert_close(frozen.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_evaluation_mode_too(dtype: torch.dtype) -> None:
    x = torch.randn(4, 5, 3, 2).to(dtype)
    reference = syncbn.convert(trained(nn.BatchNorm2d), "sync").to(dtype).eval()
    frozen = syncbn.convert(trained(nn.BatchNorm2d), "frozen").to(dtype)
    assert torch.equal(frozen(x), reference(x))
    assert {key: value.dtype for key, value in frozen.state_dict().items()} == {
        key: value.dtype for key, value in reference.state_dict().items()
    }


def test_nothing_of_it_can_be_trained() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), syncbn.convert(trained(nn.BatchNorm2d), "frozen")).requires_grad_(True)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]


def test_checkpoints_go_both_ways() -> None:
    original, frozen = trained(nn.BatchNorm2d), syncbn.norm_layer("frozen")(5)
    frozen.load_state_dict(original.state_dict())
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(frozen(x), original.eval()(x))
    nn.BatchNorm2d(5).load_state_dict(frozen.state_dict())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_an_optimizer_neither_moves_it_nor_loses_it(set_to_none: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), trained(nn.BatchNorm2d))
    weight, bias = model[1].weight, model[1].bias
    bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)

    def step() -> None:
        optimizer.zero_grad(set_to_none)
        model(torch.randn(4, 3, 2, 2)).sin().sum().backward()
        optimizer.step()

    step()
    syncbn.convert(model, "frozen")
    before, convolution = copy.deepcopy(model[1].state_dict()), model[0].weight.clone()
    optimizer.step()  # with the last step's gradients
    step()
    torch.testing.assert_close(model[1].state_dict(), before, rtol=0, atol=0)
    assert not torch.equal(model[0].weight, convolution), "the rest of the model trains"

    syncbn.revert(model)
    assert model[1].weight is weight
    assert model[1].bias is bias
    assert (weight.requires_grad, bias.requires_grad) == (True, False)
    torch.testing.assert_close(model[1].state_dict(), before, rtol=0, atol=0)
    step()
    assert not torch.equal(weight, before["weight"])


def test_what_was_loaded_while_frozen_is_what_revert_gives() -> None:
    model, other = nn.Sequential(trained(nn.BatchNorm2d)), nn.Sequential(nn.BatchNorm2d(5))
    syncbn.convert(model, "frozen").load_state_dict(other.state_dict())
    syncbn.revert(model.double())
    torch.testing.assert_close(model.state_dict(), other.double().state_dict(), rtol=0, atol=0)


def test_without_statistics_there_is_nothing_to_freeze() -> None:
    model = nn.Sequential(nn.BatchNorm2d(5, track_running_stats=False))
    with pytest.raises(ValueError, match="can't convert 0 to 'frozen': it has no running statistics to freeze"):
        syncbn.convert(model, "frozen")
    assert type(model[0]) is nn.BatchNorm2d


def test_layers_without_statistics_take_on_those_of_a_norm_that_tracks() -> None:
    model = nn.Sequential(nn.BatchNorm2d(5, track_running_stats=False))
    with pytest.warns(UserWarning, match="0 has no running statistics and evaluates by its batch"):
        syncbn.convert(model, "sync", track_running_stats=True)
    model(torch.randn(4, 5, 3, 3))
    assert model[0].num_batches_tracked == 1
    assert syncbn.revert(model)[0].running_mean is None
