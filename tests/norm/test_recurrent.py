"""Batch normalization by time steps: each step and its row against the oracle, and ranks whose steps are empty."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import syncbn
from syncbn.norm.recurrent import RecurrentBatchNorm
from tests.norm import oracle
from tests.ranks import Ranks

STEPS, N, C = 4, 7, 3


def random_sequence(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x and dy (STEPS, N, C) and the mask (STEPS, N) of sequences of different lengths; a mean for each step."""
    generator = torch.Generator().manual_seed(seed)
    x, dy = torch.randn(2, STEPS, N, C, dtype=torch.float64, generator=generator)
    lengths = torch.tensor([4, 1, 3, 4, 2, 2, 4])
    return x * 2 + torch.arange(STEPS)[:, None, None], dy, torch.arange(STEPS)[:, None] < lengths


def random_layer(**options: Any) -> RecurrentBatchNorm:
    layer = RecurrentBatchNorm(C, **{"max_length": STEPS, **options}).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data = torch.randn(C, dtype=torch.float64, generator=generator)
    return layer


def run(layer: RecurrentBatchNorm, x: Tensor, dy: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and gradient of the input of all steps."""
    x = x.clone().requires_grad_()
    y = torch.stack([layer(x[t], t, None if masks is None else masks[t]) for t in range(STEPS)])
    y.backward(dy)
    return y.detach(), x.grad


@pytest.mark.parametrize("masked", [False, True])
def test_every_step_is_batch_normalization_with_a_row_of_its_own(masked: bool) -> None:
    x, dy, masks = random_sequence()
    layer = random_layer()
    y, dx = run(layer, x, dy, masks if masked else None)
    steps = [
        oracle.training_step(x[t], dy[t], layer.weight, layer.bias, masks[t] if masked else None) for t in range(STEPS)
    ]
    torch.testing.assert_close(y, torch.stack([step.y for step in steps]))
    torch.testing.assert_close(dx, torch.stack([step.dx for step in steps]))
    torch.testing.assert_close(layer.weight.grad, sum(step.dweight for step in steps))
    torch.testing.assert_close(layer.bias.grad, sum(step.dbias for step in steps))
    torch.testing.assert_close(layer.running_mean, torch.stack([step.running_mean for step in steps]))
    torch.testing.assert_close(layer.running_var, torch.stack([step.running_var for step in steps]))
    assert layer.num_batches_tracked.tolist() == [1] * STEPS


def test_evaluation_takes_the_row_of_the_step() -> None:
    x, dy, masks = random_sequence()
    layer = random_layer()
    run(layer, x, dy, masks)
    layer.eval()
    for t in range(STEPS):
        mean, var = layer.running_mean[t], layer.running_var[t]
        expected = (x[t] - mean) / (var + 1e-5).sqrt() * layer.weight + layer.bias
        torch.testing.assert_close(layer(x[t], t), expected)
        torch.testing.assert_close(layer(x[t], t, masks[t]), torch.where(masks[t][:, None], expected, 0))


def test_steps_past_the_end_take_the_last_row_there_is_and_the_last_that_was_trained() -> None:
    x, _, _ = random_sequence()
    short = random_layer(max_length=2, momentum=1.0)
    for t in range(STEPS):
        short(x[t], t)
    torch.testing.assert_close(short.running_mean, torch.stack([x[0].mean(0), x[3].mean(0)]))
    assert short.num_batches_tracked.tolist() == [1, 3]

    long = random_layer(max_length=50)
    for t in range(2):
        long(x[t], t)
    long.eval()
    torch.testing.assert_close(long(x[3], 40), long(x[3], 1), rtol=0, atol=0)
    assert not torch.allclose(long(x[3], 0), long(x[3], 1))


def test_momentum_none_averages_the_batches_of_each_step() -> None:
    layer = random_layer(momentum=None)
    batches = [(0, 1.0), (0, 3.0), (1, 10.0)]
    for step, mean in batches:
        layer(torch.randn(5, C, dtype=torch.float64) * 1e-9 + mean, step)
    torch.testing.assert_close(layer.running_mean[:, 0], torch.tensor([2.0, 10, 0, 0]).double())


def test_a_step_that_nobody_reaches_moves_nothing() -> None:
    layer, x = random_layer(), torch.randn(N, C, dtype=torch.float64, requires_grad=True)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    y = layer(x, 2, torch.zeros(N, dtype=torch.bool))
    y.sum().backward()
    assert not y.any()
    assert not x.grad.any()
    torch.testing.assert_close(dict(layer.named_buffers()), before, rtol=0, atol=0)


def test_it_starts_with_a_small_scale_and_can_start_again() -> None:
    layer = RecurrentBatchNorm(C, max_length=2)
    assert layer.weight.tolist() == pytest.approx([0.1] * C)
    assert RecurrentBatchNorm(C, gamma_init=0.5).weight.tolist() == [0.5] * C
    fresh = copy.deepcopy(layer.state_dict())
    layer(torch.randn(5, C), 1)
    layer.reset_parameters()
    torch.testing.assert_close(layer.state_dict(), fresh)
    assert fresh["running_var"].tolist() == [[1.0] * C] * 2


def share_of(rank: int) -> slice:
    """Rank 0 has all the long sequences, rank 2 none at all."""
    return (slice(0, 4), slice(4, N), slice(0, 0))[rank]


def run_on_rank() -> tuple[Any, ...]:
    x, dy, masks = random_sequence()
    rows = share_of(dist.get_rank())
    layer = random_layer()
    y, dx = run(layer, x[:, rows], dy[:, rows], masks[:, rows])
    return y, dx, layer.weight.grad, dict(layer.named_buffers())


@pytest.mark.distributed
def test_ranks_with_other_lengths_equal_one_process(ranks: Callable[[int], Ranks]) -> None:
    layer = random_layer()
    y, dx = run(layer, *random_sequence())
    results = ranks(3).run(run_on_rank)
    torch.testing.assert_close(torch.cat([result[0] for result in results], 1), y)
    torch.testing.assert_close(torch.cat([result[1] for result in results], 1), dx)
    torch.testing.assert_close(sum(result[2] for result in results), layer.weight.grad)
    for *_, buffers in results:
        torch.testing.assert_close(buffers, dict(layer.named_buffers()))


@pytest.mark.slow
def test_a_compiled_layer_moves_the_row_of_its_step() -> None:
    """With Inductor, which updates row 0 if an operator gets a view of a row."""
    x, dy, _ = random_sequence()
    plain, layer = random_layer(), random_layer()
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True)
    for step in (1, 2):
        for forward in (plain, compiled):
            forward(x[step].clone().requires_grad_(), step).backward(dy[step])
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_models_keep_all_rows_in_float32(dtype: torch.dtype) -> None:
    layer = RecurrentBatchNorm(C, max_length=2)
    layer(torch.randn(8, C) + 100.1, 1)
    mean = layer.running_mean.clone()
    layer.to(dtype)
    assert torch.equal(layer.running_mean, mean)
    y = layer.eval()((torch.randn(8, C) + 100).to(dtype), 1)
    assert y.dtype == dtype


def test_convert_starts_every_step_from_the_statistics_that_there_are_and_leaves_recurrent_layers_alone() -> None:
    model = nn.Sequential(nn.Linear(2, C), nn.BatchNorm1d(C))
    model(torch.randn(9, 2))
    x = torch.randn(5, 2)
    expected, layer = model.eval()(x), model[1]
    before = copy.deepcopy(layer.state_dict())
    syncbn.convert(model, "recurrent", max_length=3)
    assert model[1].running_var.shape == (3, C)
    torch.testing.assert_close(model(x), expected)
    model.train()(x)
    syncbn.revert(model)
    torch.testing.assert_close(model[1].state_dict(), before)

    inside = nn.ModuleList([RecurrentBatchNorm(C), nn.BatchNorm1d(C)])
    syncbn.convert(inside, "sync")
    assert [type(module) for module in inside] == [RecurrentBatchNorm, syncbn.SyncBatchNorm]


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"max_length": 0}, (torch.randn(4, C),), "max_length must be at least 1, got 0"),
        ({}, (torch.randn(4, C), -1), "step must be at least 0, got -1"),
        ({}, (torch.randn(4, 5), 0), f"expected {C} channels in dimension 1"),
        ({}, (torch.randn(4, C), 0, torch.ones(5, dtype=torch.bool)), "mask must have shape"),
        ({}, (torch.randn(1, C), 0), "one sample a channel has no variance"),
    ],
    ids=str,
)
def test_mistakes(options: dict[str, int], arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        syncbn.norm_layer("recurrent", **options)(C)(*arguments)
