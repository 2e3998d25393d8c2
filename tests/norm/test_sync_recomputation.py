"""Activation checkpointing combined with compilation: one update of statistics per step, and correct gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import syncbn
from tests.ranks import Ranks


def block() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), syncbn.SyncBatchNorm(6), nn.ReLU(), nn.Linear(6, 2)).double()


def eager(model: nn.Module, reentrant: bool) -> Callable[[Tensor], Tensor]:
    return lambda x: checkpoint(model, x, use_reentrant=reentrant)


def of_a_compiled_block(model: nn.Module, reentrant: bool) -> Callable[[Tensor], Tensor]:
    compiled = torch.compile(model, fullgraph=True)
    return lambda x: checkpoint(compiled, x, use_reentrant=reentrant)


def compiled_as_a_whole(model: nn.Module, reentrant: bool) -> Callable[[Tensor], Tensor]:
    # Reentrant checkpointing breaks the graph, so fullgraph is for the other kind alone.
    return torch.compile(lambda x: checkpoint(model, x, use_reentrant=reentrant), fullgraph=not reentrant)


def step(arrange: Callable[..., Callable[[Tensor], Tensor]] | None, reentrant: bool) -> list[Tensor]:
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.compiler.reset()
    model = block()
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(3 + rank, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    forward = model if arrange is None else arrange(model, reentrant)
    for _ in range(2):
        forward(x).square().sum().backward()
    return [x.grad, *(p.grad for p in model.parameters()), *model.buffers()]


ARRANGEMENTS = [
    eager,
    pytest.param(of_a_compiled_block, marks=pytest.mark.slow),
    pytest.param(compiled_as_a_whole, marks=pytest.mark.slow),
]


@pytest.mark.distributed
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("arrange", ARRANGEMENTS)
def test_a_checkpointed_step_equals_the_plain_one(
    ranks: Callable[[int], Ranks], arrange: Callable[..., Callable[[Tensor], Tensor]], reentrant: bool
) -> None:
    plain = ranks(2).run(step, None, False)
    for got, expected in zip(ranks(2).run(step, arrange, reentrant), plain, strict=True):
        torch.testing.assert_close(got, expected)
    assert plain[0][-1].item() == 2, "num_batches_tracked"


@pytest.mark.slow
@pytest.mark.parametrize("first", [of_a_compiled_block, compiled_as_a_whole])
def test_order_of_compilation_does_not_matter(first: Callable[..., Callable[[Tensor], Tensor]]) -> None:
    """A graph traced outside a backward pass serves a recomputation, and the other way round."""
    torch.compiler.reset()
    model = block()
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    compiled(x).sum().backward()  # traced here, without a checkpoint
    first(compiled if first is of_a_compiled_block else model, False)(x).sum().backward()
    compiled(x).sum().backward()
    assert model[1].num_batches_tracked.item() == 3
