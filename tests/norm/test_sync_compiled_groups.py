"""Compiled layers when process groups come and go, and what no graph or DDP's join can hold is refused."""

import copy
import tempfile
import uuid
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import syncbn
from syncbn.norm.core import compat
from tests.norm.test_every_norm import build
from tests.ranks import Ranks


def meet(meeting: str, rank: int, world_size: int) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(meeting, world_size), rank=rank, world_size=world_size)


def through_groups(meeting: str, name: str) -> list[tuple[str, Tensor, Tensor]]:
    """Output and gradient of a compiled layer and of its eager copy: without a group, in one, and so on."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.compiler.reset()
    eager = build(name)
    layer = copy.deepcopy(eager)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found = []

    def step(when: str) -> None:
        generator = torch.Generator().manual_seed(10 * len(found) + rank)
        x, dy = torch.randn(4, 3, 5, 5, generator=generator), torch.randn(4, 8, 4, 4, generator=generator)
        results = []
        for forward in (compiled, eager):
            leaf = x.clone().requires_grad_()
            y = forward(leaf)
            results.append(torch.cat([y.detach().flatten(), torch.autograd.grad(y, leaf, dy)[0].flatten()]))
        found.append((when, *results))

    def use(group: Any) -> None:
        for model in (layer, eager):
            model[1].process_group = group

    dist.destroy_process_group()  # the one of the fixture
    step("before a group")
    meet(f"{meeting}/1", rank, world_size)
    step("in the first group")
    dist.barrier()
    dist.destroy_process_group()
    step("without it")
    meet(f"{meeting}/2", rank, world_size)
    step("in another one")
    alone = [dist.new_group([member]) for member in range(world_size)][rank]
    both = dist.new_group(list(range(world_size)))
    for group in (alone, both, None, alone):
        use(group)
        step("in groups of its own")
    dist.barrier()
    dist.destroy_process_group()
    meet(f"{meeting}/3", rank, world_size)
    use(None)
    step("in a third one, with nothing between")
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["sync", "batch_renorm"])
def test_a_graph_follows_the_process_group(name: str, ranks: Callable[[int], Ranks]) -> None:
    team = ranks(2)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for steps in team.run(through_groups, folder, name):
                for when, got, expected in steps:
                    torch.testing.assert_close(got, expected, msg=lambda text, when=when: f"{when}: {text}")
    finally:
        team.stop()  # its default group isn't the one it started with


def from_one_rank_to_two(meeting: str) -> tuple[Tensor, Tensor]:
    rank = dist.get_rank()
    torch.compiler.reset()
    dist.destroy_process_group()
    meet(f"{meeting}/{uuid.uuid4()}", 0, 1)
    layer = syncbn.SyncBatchNorm(3)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    compiled(torch.randn(4, 3))
    dist.destroy_process_group()
    meet(f"{meeting}/two", rank, 2)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(rank))
    return compiled(x).detach(), syncbn.SyncBatchNorm(3)(x).detach()


@pytest.mark.distributed
def test_a_graph_of_one_rank_serves_two(ranks: Callable[[int], Ranks]) -> None:
    team = ranks(2)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for got, expected in team.run(from_one_rank_to_two, folder):
                torch.testing.assert_close(got, expected)
    finally:
        team.stop()


def one_rank_after_another(meeting: str, what: str) -> tuple[Tensor, Tensor]:
    """Gradients, in a group of two, of a graph that was made in a group of one, and of the eager code."""
    # Torch's own; the second where a graph breaks.
    warnings.filterwarnings("ignore", ".*Function'> should not be instantiated", DeprecationWarning)
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
    rank = dist.get_rank()
    torch.compiler.reset()
    dist.destroy_process_group()
    found = []
    for number, compiled in enumerate((True, False)):
        layer = build("moving_average") if what == "moving_average" else nn.Identity()

        def loss(x: Tensor, layer: nn.Module = layer) -> Tensor:
            y = layer(x)
            weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
            return syncbn.mean_over_ranks((y * weights).flatten()) if what == "loss" else (y * weights).sum()

        whole = what == "loss" or compat.COMPILED_BACKWARD_WRITES
        run = torch.compile(loss, backend="aot_eager", fullgraph=whole) if compiled else loss
        for world_size in (1, 2):
            meet(f"{meeting}/{number}-{world_size}-{rank * (world_size == 1)}", rank * (world_size == 2), world_size)
            x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(rank)).requires_grad_()
            run(x).backward()
            dist.barrier()
            dist.destroy_process_group()
        assert x.grad is not None
        windows = [layer[1].get_buffer("gradient_window")] if isinstance(layer, nn.Sequential) else []
        found.append(torch.cat([part.flatten() for part in (x.grad, *windows)]))
    return found[0], found[1]


@pytest.mark.distributed
@pytest.mark.parametrize("what", ["moving_average", "loss"])
def test_a_graph_counts_the_ranks_when_it_runs(what: str, ranks: Callable[[int], Ranks]) -> None:
    team = ranks(2)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for got, expected in team.run(one_rank_after_another, folder, what):
                torch.testing.assert_close(got, expected)
    finally:
        team.stop()


def join(compiled: bool, throws: bool, synchronized: bool) -> str:
    """What ranks with 2 and 3 batches come to."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), (syncbn.SyncBatchNorm if synchronized else nn.BatchNorm2d)(4))
    model = torch.compile(model, backend="aot_eager") if compiled else model
    ddp = DistributedDataParallel(model)
    steps = 0
    try:
        with ddp.join(throw_on_early_termination=throws):
            for _ in range(2 + rank):
                ddp(torch.randn(2, 3, 4, 4)).sum().backward()
                steps += 1
    except (NotImplementedError, RuntimeError) as error:
        return f"{steps} steps: {error}"
    return f"{steps} steps"


@pytest.mark.distributed
@pytest.mark.parametrize("compiled", [False, True])
def test_joining_uneven_inputs_is_refused(ranks: Callable[[int], Ranks], compiled: bool) -> None:
    for answer in ranks(2).run(join, compiled, False, True):
        assert answer.startswith("0 steps: DDP's join() knows the messages of DDP alone")
        assert "throw_on_early_termination=True" in answer


@pytest.mark.distributed
def test_what_join_can_do_is_left_to_it(ranks: Callable[[int], Ranks]) -> None:
    assert ranks(2).run(join, False, False, False) == ["2 steps", "3 steps"]
    first, second = ranks(2).run(join, False, True, True)
    assert first.startswith("2 steps: Rank 0 exhausted all inputs")
    assert second.startswith("2 steps: Detected at least one rank that exhausted inputs")


def trace() -> str:
    warnings.simplefilter("ignore")  # of the tracer
    layer = syncbn.SyncBatchNorm(3)
    x = torch.randn(4, 3)
    torch.jit.trace(layer.eval(), x, check_trace=False)
    try:
        torch.jit.trace(layer.train(), x, check_trace=False)
    except NotImplementedError as error:
        return str(error)
    return "traced"


@pytest.mark.distributed
def test_a_trace_that_would_lose_messages_is_refused(ranks: Callable[[int], Ranks]) -> None:
    for answer in ranks(2).run(trace):
        assert answer.startswith("torch.jit.trace records no message between ranks")


@pytest.mark.parametrize("name", ["adaptive", "batch", "decorrelated", "ghost", "switchable", "sync"])
def test_the_average_of_all_batches_in_one_graph(name: str) -> None:
    torch.compiler.reset()
    eager = syncbn.norm_layer(name, momentum=None)(4)
    layer = copy.deepcopy(eager)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        x = torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(seed)) * (seed + 1)
        torch.testing.assert_close(compiled(x), eager(x))
    torch.testing.assert_close(layer.state_dict(), eager.state_dict())
