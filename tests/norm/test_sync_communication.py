"""Number and group of messages, and data-parallel training."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import syncbn
from syncbn.norm.core import compat
from tests.norm import oracle, steps
from tests.norm.core.shared import asked_for
from tests.norm.steps import Batch
from tests.norm.test_sync import random_batch
from tests.ranks import Ranks

pytestmark = pytest.mark.distributed


COLLECTIVES = {"collective": "c10d::allreduce_", "one_shot": "syncbn::one_shot"}


def collectives(action: Callable[[], object]) -> Counter[str]:
    """Messages that torch's profiler sees in an action."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        action()
    return Counter(
        event.name
        for event in profile.events()
        if event.name.startswith(("c10d::", "_c10d_functional::all", "syncbn::one"))
    )


def count_collectives(exchange: str) -> dict[str, Counter[str]]:
    with asked_for(exchange):
        return _count_collectives(dist.new_group())


def _count_collectives(group: dist.ProcessGroup) -> dict[str, Counter[str]]:
    rank = dist.get_rank()
    layer = syncbn.SyncBatchNorm(4, process_group=group).double()
    x = torch.randn(3 + rank, 4, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3 + rank, 5) < 0.5
    seen: dict[str, Counter[str]] = {}
    y = layer(x)
    seen["forward"] = collectives(lambda: layer(x))
    seen["forward with a mask"] = collectives(lambda: layer(x, mask))
    seen["backward"] = collectives(lambda: y.sum().backward())
    y = layer(x)
    seen["backward with create_graph"] = collectives(lambda: torch.autograd.grad(y.pow(2).sum(), x, create_graph=True))
    y = checkpoint(layer, x, use_reentrant=False)
    seen["backward with recomputation"] = collectives(lambda: y.sum().backward())
    layer.eval()
    seen["eval"] = collectives(lambda: layer(x).sum().backward())
    untracked = syncbn.SyncBatchNorm(4, track_running_stats=False).double().eval()
    seen["eval without running statistics"] = collectives(lambda: untracked(x))
    layer.train()
    frozen_input = x.detach()
    y = layer(frozen_input)
    seen["backward of an input without gradient"] = collectives(lambda: y.sum().backward())
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x)
    seen["compiled forward"] = collectives(lambda: compiled(x))
    y = compiled(x)
    seen["compiled backward"] = collectives(lambda: y.sum().backward())
    return seen


@pytest.mark.parametrize("exchange", COLLECTIVES)
def test_one_message_forward_and_one_backward(ranks: Callable[[int], Ranks], exchange: str) -> None:
    expected = {
        "forward": 1,
        "forward with a mask": 1,
        "backward": 1,
        "backward with create_graph": 1,
        "backward with recomputation": 2,
        "eval": 0,
        "eval without running statistics": 0,
        "backward of an input without gradient": 0,
        "compiled forward": 1,
        "compiled backward": 1,
    }
    for seen in ranks(2).run(count_collectives, exchange):
        assert {what: dict(counter) for what, counter in seen.items()} == {
            what: {COLLECTIVES[exchange]: n} if n else {} for what, n in expected.items()
        }


def buffers_under_ddp(name: str) -> tuple[Counter[str], Tensor]:
    model = ddp(nn.Sequential(nn.Linear(3, 4), syncbn.norm_layer(name)(4)))
    x = torch.randn(5, 3) + dist.get_rank()
    for _ in range(2):  # after its first step, DDP rebuilds its buckets and sends their layout
        model(x).sum().backward()
    return collectives(lambda: model(x)), model.module[1].running_mean


@pytest.mark.parametrize(("name", "messages"), [("sync", 1), ("batch", 0)])
def test_ddp_neither_sends_nor_overwrites_buffers(ranks: Callable[[int], Ranks], name: str, messages: int) -> None:
    (seen, first), (_, second) = ranks(2).run(buffers_under_ddp, name)
    assert seen.total() == messages, "synchronized statistics are equal without a broadcast"
    assert set(seen) <= set(COLLECTIVES.values())
    assert torch.equal(first, second) == (name == "sync"), "a rank keeps what it holds of its own"


def eval_on_rank_zero_alone() -> Tensor | None:
    layer = syncbn.SyncBatchNorm(3)
    layer(torch.randn(4, 3))
    if dist.get_rank() == 0:
        return layer.eval()(torch.ones(2, 3)).detach()
    return None


def test_eval_on_rank_zero_alone_does_not_wait(ranks: Callable[[int], Ranks]) -> None:
    alone, _ = ranks(2).run(eval_on_rank_zero_alone)
    assert alone.isfinite().all()


def train_in_subgroup(batch: Batch) -> oracle.Step:
    group, _ = dist.new_subgroups(2)
    batch.options["process_group"] = group
    return steps.train(batch)


def test_subgroups_see_their_own_ranks_only(ranks: Callable[[int], Ranks]) -> None:
    batch = random_batch(0, [3, 4], [2, 3, 1, 4])
    results = ranks(4).run(train_in_subgroup, batch)
    for pair, rows in ((results[:2], slice(0, 5)), (results[2:], slice(5, 10))):
        expected = oracle.training_step(batch.x[rows], batch.dy[rows], batch.weight, batch.bias)
        torch.testing.assert_close(tuple(steps.gather(pair)), tuple(expected))


def train_by(exchange: str, batch: Batch) -> oracle.Step:
    with asked_for(exchange):
        return steps.train(batch)


@pytest.mark.parametrize("exchange", COLLECTIVES)
@pytest.mark.parametrize("sizes", [[3, 4], [2, 0, 5, 1]])
def test_either_exchange_gives_one_process_s_answer(
    ranks: Callable[[int], Ranks], exchange: str, sizes: list[int]
) -> None:
    batch = random_batch(1, [3, 4], sizes)
    results = ranks(len(sizes)).run(train_by, exchange, batch)
    expected = oracle.training_step(batch.x, batch.dy, batch.weight, batch.bias)
    torch.testing.assert_close(tuple(steps.gather(results)), tuple(expected))


def build_with_foreign_group() -> str:
    foreign = dist.new_group([0])
    try:
        syncbn.SyncBatchNorm(3, process_group=foreign)
    except ValueError as error:
        return str(error)
    return "built"


def test_a_group_without_this_rank_is_refused(ranks: Callable[[int], Ranks]) -> None:
    first, second = ranks(2).run(build_with_foreign_group)
    assert first == "built"
    assert "this rank isn't a member of process_group" in second


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6),
        nn.Flatten(), nn.Linear(96, 5), nn.BatchNorm1d(5),
    )  # fmt: skip
    return model.double()


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(9, 1, 8, 8, dtype=torch.float64, generator=generator),
        torch.randint(5, (9,), generator=generator),
    )


def sgd_steps(wrap: Callable[[nn.Module], nn.Module], sizes: list[int], steps: int) -> tuple[dict[str, Tensor], Any]:
    """Parameters and statistics after some steps on this rank's share."""
    rank = dist.get_rank()
    start = sum(sizes[:rank])
    images, labels = (t[start : start + sizes[rank]] for t in samples())
    model = syncbn.convert(network(), "sync")
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = syncbn.mean_over_ranks(nn.functional.cross_entropy(wrapped(images), labels, reduction="none"))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return _whole(model.state_dict()), losses


def _whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.replace("_orig_mod.", ""): (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()
        for key, value in state.items()
    }


def one_process_steps(steps: int) -> tuple[dict[str, Tensor], list[float]]:
    model, (images, labels) = network(), samples()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.state_dict(), losses


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, **compat.ddp_without_buffers())


def ddp_default(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def ddp_of_compiled(model: nn.Module) -> nn.Module:
    torch.compiler.reset()
    return ddp(torch.compile(model, fullgraph=True))


def fsdp(model: nn.Module) -> nn.Module:
    for layer in list(model):
        if any(True for _ in layer.parameters()):
            fully_shard(layer)
    return fully_shard(model)


@pytest.mark.parametrize(
    ("wrap", "sizes"),
    [
        *((wrap, sizes) for wrap in (ddp, ddp_default, fsdp) for sizes in ([4, 5], [2, 7], [9, 0])),
        # Not with an empty rank: torch 2.13 can't compile the backward pass of a convolution over no samples.
        pytest.param(ddp_of_compiled, [2, 7], marks=pytest.mark.slow),
    ],
)
def test_training_on_unequal_batches_equals_one_process(
    ranks: Callable[[int], Ranks], wrap: Callable[[nn.Module], nn.Module], sizes: list[int]
) -> None:
    expected, losses = one_process_steps(3)
    results = ranks(2).run(sgd_steps, wrap, sizes, 3)
    for state, _ in results:
        torch.testing.assert_close(state, expected, rtol=1e-9, atol=1e-9)
    for step, target in enumerate(losses):
        assert sum(shares[step] for _, shares in results) / 2 == pytest.approx(target, abs=1e-9)


def autocast_step(dtype: torch.dtype) -> dict[str, Any]:
    model = syncbn.convert(network().float(), "sync")
    images, labels = (t[dist.get_rank() * 4 :][:4] for t in samples())
    seen = {}
    model[1].register_forward_hook(lambda module, args, output: seen.update(input=args[0].dtype, output=output.dtype))
    with torch.autocast("cpu", dtype=dtype):
        loss = nn.functional.cross_entropy(model(images.float()), labels)
    loss.backward()
    seen["buffers"] = {buffer.dtype for name, buffer in model.named_buffers() if "running" in name}
    seen["gradients"] = {p.grad.dtype for p in model.parameters()}
    seen["finite"] = all(p.grad.isfinite().all() for p in model.parameters())
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_half_activations_and_float_statistics(
    ranks: Callable[[int], Ranks], dtype: torch.dtype
) -> None:
    for seen in ranks(2).run(autocast_step, dtype):
        assert seen == {
            "input": dtype,
            "output": dtype,
            "buffers": {torch.float32},
            "gradients": {torch.float32},
            "finite": True,
        }


def weighted_losses() -> tuple[float, float]:
    rank = dist.get_rank()
    values = torch.arange(rank * 3.0, requires_grad=True)
    loss = syncbn.mean_over_ranks(values)
    loss.backward()
    return loss.item(), values.grad.sum().item()


def test_mean_over_ranks_with_an_empty_rank(ranks: Callable[[int], Ranks]) -> None:
    # Rank 0 has none, rank 1 has 0, 1, 2: N = 3, world size 2.
    assert ranks(2).run(weighted_losses) == [(0.0, 0.0), (2.0, 2.0)]


def test_mean_over_ranks_of_one_process_is_the_mean() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    assert syncbn.mean_over_ranks(values).item() == 3.0


def with_distributed_tensors() -> tuple[str, float]:
    mesh = init_device_mesh("cpu", (2,))
    x = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0))
    whole, layer = nn.BatchNorm1d(3), syncbn.SyncBatchNorm(3)
    batch = distribute_tensor(x, mesh, [Shard(0)])
    try:
        layer(batch)
    except TypeError as error:
        refusal = str(error)
    rank = dist.get_rank()
    return refusal, (layer(batch.to_local()) - whole(x)[4 * rank : 4 * rank + 4]).abs().max().item()


def test_a_tensor_of_all_ranks_samples_is_refused(ranks: Callable[[int], Ranks]) -> None:
    for refusal, error in ranks(2).run(with_distributed_tensors):
        assert refusal.endswith("got a DTensor of all ranks': call input.to_local()")
        assert error < 1e-5
