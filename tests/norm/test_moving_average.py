"""Moving average batch normalization against a float64 oracle of its forward and backward pass, over 50 steps."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import syncbn
from syncbn.norm import MovingAverageBatchNorm
from syncbn.norm.surgery.feeding import attach_norms
from tests.ranks import Ranks

STEPS, LR, EPS = 50, 0.05, 1e-5
OPTIONS = {"window": 4, "warmup": 6, "r_max": 1.2, "r_start": 12, "momentum": 0.1}
C = 5


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(step: int, samples: int = 6) -> Tensor:
    """Images whose scale changes from step to step, so that windows and limits matter."""
    return random(step, samples, 3, 5, 4) * (1.5 + torch.sin(torch.tensor(step * 0.9))) + 0.5


def weights(y: Tensor, step: int) -> Tensor:
    """Weights of the loss Σ y · weights."""
    return random(1000 + step, *y.shape) / len(y)


def net(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, C, 2), MovingAverageBatchNorm(C, eps=EPS, **{**OPTIONS, **options})).double()
    attach_norms(layers)
    return layers


def by_formula(masked: bool = False) -> dict[str, Any]:
    """50 steps of gradient descent, with every gradient written out."""
    layers = net()
    weight, bias = layers[0].parametrizations.weight.original.detach().clone(), layers[0].bias.detach().clone()
    gamma, beta, running = torch.ones(C).double(), torch.zeros(C).double(), torch.ones(C).double()
    squares: list[Tensor] = []
    gradients: list[Tensor] = []
    outputs = []
    for step in range(STEPS):
        weight.requires_grad_(), bias.requires_grad_()
        x = F.conv2d(batch(step), weight - weight.mean((1, 2, 3), keepdim=True), bias)
        mask = keep(x, step) if masked else torch.ones_like(x[:, :1], dtype=torch.bool)
        x = torch.where(mask, x, 0)
        count = mask.sum()
        columns = x.detach().movedim(1, 0).flatten(1)
        squares.append((columns**2).sum(1) / count)
        square = torch.stack(squares[-4:]).mean(0) if step >= 6 else squares[-1]
        r = torch.sqrt((square + EPS) / (running + EPS)).clip(1 / 1.2, 1.2) if step >= 12 else torch.ones(C)
        running = 0.9 * running + 0.1 * square
        z = x.detach() / torch.sqrt(square + EPS).view(C, 1, 1)
        y = torch.where(mask, z * (r * gamma).view(C, 1, 1) + beta.view(C, 1, 1), 0)
        outputs.append(y)

        dy = torch.where(mask, weights(y, step), 0)
        g = dy * (gamma * r).view(C, 1, 1)
        gradients.append((g * z).sum((0, 2, 3)) / count)
        average = torch.stack(gradients[-4:]).mean(0) if step >= 6 else gradients[-1]
        dx = (g - z * average.view(C, 1, 1)) / torch.sqrt(square + EPS).view(C, 1, 1)
        dweight, dbias = torch.autograd.grad(x, (weight, bias), dx)
        gamma, beta = gamma - LR * (dy * z * r.view(C, 1, 1)).sum((0, 2, 3)), beta - LR * dy.sum((0, 2, 3))
        weight, bias = weight.detach() - LR * dweight, bias.detach() - LR * dbias
    return {"outputs": outputs, "weight": weight, "bias": bias, "gamma": gamma, "beta": beta, "running_var": running}


def keep(x: Tensor, step: int) -> Tensor:
    return random(2000 + step, len(x), 1, *x.shape[2:]) > -0.5


def by_layer(
    rows: slice, world_size: int = 1, masked: bool = False, model: nn.Sequential | None = None
) -> dict[str, Any]:
    """Results of the layer on some rows of every batch; gradients are summed over ranks, since the loss is a sum."""
    model = net() if model is None else model
    outputs = []
    for step in range(STEPS):
        model.zero_grad()
        x = model[0](batch(step)[rows])
        mask = keep(torch.empty(6, C, *x.shape[2:]), step)[rows, 0] if masked else None
        y = model[1](x, mask)
        outputs.append(y.detach())
        # A rank's loss is weighted by the world size, as `mean_over_ranks` does it; DDP averages.
        (y * weights(torch.empty(6, *y.shape[1:]), step)[rows]).sum().mul(world_size).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if world_size > 1:
                    dist.all_reduce(parameter.grad)
                parameter.sub_(parameter.grad, alpha=LR / world_size)
    return {
        "outputs": outputs,
        "weight": model[0].parametrizations.weight.original.detach(),
        "bias": model[0].bias.detach(),
        "gamma": model[1].weight.detach(),
        "beta": model[1].bias.detach(),
        "running_var": model[1].running_var,
    }


@pytest.mark.parametrize("masked", [False, True])
def test_fifty_steps_are_the_oracles(masked: bool) -> None:
    torch.testing.assert_close(by_layer(slice(None), masked=masked), by_formula(masked), rtol=1e-9, atol=1e-9)


def on_rank(sizes: list[int], masked: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    rank = dist.get_rank()
    model = net()
    result = by_layer(slice(sum(sizes[:rank]), sum(sizes[: rank + 1])), len(sizes), masked, model)
    return result, dict(model[1].named_buffers())


@pytest.mark.distributed
@pytest.mark.parametrize(("sizes", "masked"), [([2, 4], False), ([3, 0, 3], True)], ids=str)
def test_ranks_are_one_process(sizes: list[int], masked: bool, ranks: Callable[[int], Ranks]) -> None:
    results, buffers = zip(*ranks(len(sizes)).run(on_rank, sizes, masked), strict=True)
    for other in buffers[1:]:
        torch.testing.assert_close(other, buffers[0], rtol=0, atol=0)
    model = net()
    expected = by_layer(slice(None), masked=masked, model=model)
    joined = {
        **results[0],
        "outputs": [torch.cat(parts) for parts in zip(*(r["outputs"] for r in results), strict=True)],
    }
    torch.testing.assert_close(joined, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(buffers[0], dict(model[1].named_buffers()), rtol=1e-9, atol=1e-9)


def test_with_a_window_of_one_gradients_are_derivatives() -> None:
    layer = MovingAverageBatchNorm(3, window=1, warmup=0, centre=False).double()
    x, weight, bias = random(0, 4, 3, 2).requires_grad_(), *random(1, 2, 3).requires_grad_()
    layer(random(2, 4, 3, 2))

    def output(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(copy.deepcopy(layer), {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(output, (x, weight, bias))
    expected = x / (x.square().mean((0, 2), keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(x), expected)


def test_a_zero_gradient_enters_as_zeros_do() -> None:
    x = random(0, 4, 3).float().requires_grad_()

    def gradients(zeros: Callable[[torch.Size], Tensor]) -> list[Tensor]:
        layer = MovingAverageBatchNorm(3, window=2, warmup=0, centre=False)
        return [torch.autograd.grad(layer(x), x, dy)[0] for dy in (torch.ones_like(x), zeros(x.shape))]

    expected = gradients(torch.zeros)
    assert expected[1].abs().max() > 0, "of the window"
    torch.testing.assert_close(gradients(torch._efficientzerotensor), expected, rtol=0, atol=0)


def test_a_second_derivative_is_refused() -> None:
    layer, x = MovingAverageBatchNorm(3, centre=False), torch.randn(4, 3, requires_grad=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)


def test_a_batch_that_is_not_finite_does_not_enter() -> None:
    layer = MovingAverageBatchNorm(3, window=2, warmup=0, centre=False).double()
    x = random(0, 4, 3)
    layer(x)
    before = copy.deepcopy(layer.state_dict())
    for lost in (torch.full((4, 3), torch.inf).double(), torch.full((4, 3), torch.nan).double(), x[:0]):
        layer(lost)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    layer(x.requires_grad_()).backward(torch.full((4, 3), torch.nan).double())
    assert layer.gradient_window.isfinite().all()
    assert layer.num_gradients == 0


# --- centred filters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "feeder",
    [
        nn.Conv2d(4, C, 3),
        nn.Conv1d(4, 10, 3, groups=2),
        nn.Conv3d(3, C, 2),
        nn.Linear(7, C),
        nn.ConvTranspose2d(4, C, 3),
        nn.ConvTranspose1d(4, 10, 2, groups=2),
    ],
    ids=str,
)
def test_every_filter_is_centred_and_given_back(feeder: Any) -> None:
    original = feeder.weight
    values, keys = original.detach().clone(), list(feeder.state_dict())
    channels = feeder.out_features if isinstance(feeder, nn.Linear) else feeder.out_channels
    norm = MovingAverageBatchNorm(channels)
    norm.attach(feeder)
    # The response to a constant image, away from the border, is the sum of a filter and the bias.
    dims = 1 if isinstance(feeder, nn.Linear) else len(feeder.kernel_size)
    inputs = feeder.in_features if isinstance(feeder, nn.Linear) else feeder.in_channels
    x = torch.ones(1, inputs) if isinstance(feeder, nn.Linear) else torch.ones(1, inputs, *[9] * dims)
    response = feeder(x) if isinstance(feeder, nn.Linear) else feeder(x).flatten(2)
    inside = response[..., response.shape[-1] // 2] if response.dim() == 3 else response
    torch.testing.assert_close(inside[0].flatten(), feeder.bias, atol=1e-5, rtol=0)
    assert not torch.allclose(feeder.weight, values)
    norm.detach()
    assert feeder.weight is original
    assert torch.equal(feeder.weight, values)
    assert list(feeder.state_dict()) == keys


def test_training_without_knowing_the_layer_before_is_refused() -> None:
    layer, x = MovingAverageBatchNorm(3), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"call norm\.attach\(conv\).*centre=False"):
        layer(x)
    layer.eval()(x)
    layer.train().without_feeder("the model has none")
    layer(x)
    assert "not centred since the model has none" in repr(layer)


def test_conversion_attaches_and_starts_from_the_old_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, C, 2), nn.BatchNorm2d(C))
    for seed in range(3):
        model(batch(seed).float())
    original, convolution, weight = model[1], model[0].weight, model[0].weight.detach().clone()
    statistics = copy.deepcopy(original.state_dict())
    syncbn.convert(model, "moving_average")
    assert model[1].is_attached
    torch.testing.assert_close(original.state_dict(), statistics, rtol=0, atol=0)
    x = torch.randn(2, C, 3, 3)
    square = original.running_var + original.running_mean.square()
    scale = (square + original.eps).rsqrt().view(C, 1, 1)
    torch.testing.assert_close(model[1].eval()(x), x * scale)

    assert syncbn.revert(model)[1] is original
    assert model[0].weight is convolution
    assert torch.equal(convolution, weight)
    assert not original.running_mean.any()
    torch.testing.assert_close(original.running_var, square)


def test_a_checkpoint_of_batch_normalization_loads_as_second_moments() -> None:
    plain, layer = nn.BatchNorm1d(3), MovingAverageBatchNorm(3)
    plain(random(0, 6, 3).float() + 2)
    layer.load_state_dict(plain.state_dict())
    assert not layer.running_mean.any()
    torch.testing.assert_close(layer.running_var, plain.running_var + plain.running_mean.square())


# --- recomputation and resuming ---------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    def step(model: nn.Module, number: int) -> Tensor:
        model.zero_grad()
        y = model(batch(number))
        y.sin().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(parameter.grad, alpha=0.01)
        return y.detach()

    model, file = net(), io.BytesIO()
    for number in range(15):
        step(model, number)
    torch.save(model.state_dict(), file)
    file.seek(0)
    resumed = net()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for number in range(15, 20):
        assert torch.equal(step(resumed, number), step(model, number))
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_checkpointing_repeats_the_last_pass_or_says_that_it_can_not() -> None:
    model, reference = net(), net()
    for number in range(14):
        checkpoint(model, batch(number), use_reentrant=False).sin().sum().backward()
        reference(batch(number)).sin().sum().backward()
    for got, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)
    torch.testing.assert_close(model.state_dict(), reference.state_dict())
    first, _ = (checkpoint(model, batch(number), use_reentrant=False) for number in range(2))
    with pytest.raises(NotImplementedError, match="a forward pass that isn't this layer's last"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, ValueError, "window must be at least 1"),
        ({"window": 2.5}, TypeError, "window must be an int"),
        ({"warmup": -1}, ValueError, "warmup must be at least 0"),
        ({"r_start": -1}, ValueError, "r_start must be at least 0"),
        ({"r_max": 0.9}, ValueError, "r_max must be at least 1"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MovingAverageBatchNorm(3, **options)
