"""Norms that synchronize within groups of ranks."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import syncbn
from syncbn.norm.core.groups import check_size, set_process_group
from tests.norm import oracle
from tests.ranks import Ranks

Pool = Callable[[int], Ranks]
SHARES = [5, 2, 3, 1]  # samples of each rank


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return 3 * torch.randn(sum(SHARES), 4, 3, 3) + 1, torch.randn(sum(SHARES), 4, 3, 3)


def step(size: int | str, environ: dict[str, str]) -> dict[str, Any]:
    """One training step of this rank's share, in its group; `environ` are the launcher's variables."""
    os.environ.update(environ)
    try:
        group = syncbn.sync_group(size)
    finally:
        for name in environ:
            del os.environ[name]
    rank = dist.get_rank()
    x, dy = (t.split(SHARES)[rank].clone() for t in batch())
    x.requires_grad_()
    layer = syncbn.SyncBatchNorm(4, process_group=group)
    y = layer(x)
    y.backward(dy)
    members = dist.get_process_group_ranks(group) if group is not None else list(range(dist.get_world_size()))
    return {"y": y.detach(), "dx": x.grad, "mean": layer.running_mean, "var": layer.running_var, "members": members}


def check(ranks_results: list[dict[str, Any]], groups: list[list[int]]) -> None:
    x, dy = (t.split(SHARES) for t in batch())
    for members in groups:
        joint_x, joint_dy = (torch.cat([t[rank] for rank in members]) for t in (x, dy))
        expected = oracle.training_step(joint_x, joint_dy, torch.ones(4), torch.zeros(4))
        parts = [SHARES[rank] for rank in members]
        for rank, y, dx in zip(members, expected.y.split(parts), expected.dx.split(parts), strict=True):
            got = ranks_results[rank]
            assert got["members"] == members
            torch.testing.assert_close(got["y"].double(), y, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(got["dx"].double(), dx, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(got["mean"].double(), expected.running_mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(got["var"].double(), expected.running_var, rtol=1e-5, atol=1e-6)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("size", "groups"),
    [(1, [[0], [1], [2], [3]]), (2, [[0, 1], [2, 3]]), (4, [[0, 1, 2, 3]]), ("world", [[0, 1, 2, 3]])],
)
def test_statistics_are_those_of_each_groups_batch(ranks: Pool, size: int | str, groups: list[list[int]]) -> None:
    check(ranks(4).run(step, size, {}), groups)


def step_on_a_node(size: str, variable: str, nodes: list[str]) -> dict[str, Any]:
    return step(size, {variable: nodes[dist.get_rank()]})


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("variable", "nodes", "groups"),
    [
        ("GROUP_RANK", ["0", "0", "1", "1"], [[0, 1], [2, 3]]),
        ("GROUP_RANK", ["0", "1", "1", "1"], [[0], [1, 2, 3]]),  # torchrun's nodes may have different numbers of ranks
        ("SLURM_NODEID", ["0", "1", "0", "1"], [[0, 2], [1, 3]]),  # srun --distribution=cyclic
        ("ANYTHING", ["0", "1", "0", "1"], [[0, 1, 2, 3]]),  # no launcher: one machine, one name
    ],
)
def test_a_node_is_what_the_launcher_calls_one(
    ranks: Pool, variable: str, nodes: list[str], groups: list[list[int]]
) -> None:
    check(ranks(4).run(step_on_a_node, "node", variable, nodes), groups)


def refusal(sizes: list[int | str]) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the caller compares the whole message
        syncbn.sync_group(sizes[dist.get_rank()])
    return str(error.value)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([3] * 4, "sync_group=3 doesn't divide the 4 rank(s): take one of [1, 2, 4], 'node' or 'world'"),
        ([1, 2, 2, 2], "ranks asked for different sync groups: [1, 2, 2, 2], in their order"),
        (["world", 2, 3, "node"], "ranks asked for different sync groups: ['world', 2, 3, 'node'], in their order"),
    ],
)
def test_what_cannot_be_divided_is_refused_on_every_rank(ranks: Pool, sizes: list[int | str], message: str) -> None:
    assert ranks(4).run(refusal, sizes) == [message] * 4


@pytest.mark.parametrize("size", ["nodes", 0, -2, True, 1.5, None])
def test_a_size_that_is_none(size: Any) -> None:
    with pytest.raises(ValueError, match=r"sync_group must be 'node', 'world' or a number of ranks"):
        check_size(size, 4)


def test_groups_need_ranks_that_have_met() -> None:
    assert syncbn.sync_group("world") is None
    with pytest.raises(ValueError, match="call init_process_group"):
        syncbn.sync_group("node")


def given_and_taken() -> tuple[list[bool], list[bool]]:
    net = nn.Sequential(syncbn.SyncBatchNorm(3), nn.BatchNorm1d(3), syncbn.norm_layer("switchable")(3))
    net.metric = nn.Module()  # like torchmetrics': a module with a process_group that isn't a norm
    net.metric.process_group = None
    group = syncbn.sync_group(1)
    layers = [net[0], net[2], net.metric]
    set_process_group(net, group)
    given = [layer.process_group is group for layer in layers]
    set_process_group(net, None)
    return given, [layer.process_group is None for layer in layers]


@pytest.mark.distributed
def test_a_models_norms_are_given_a_group_and_nothing_else_is(ranks: Pool) -> None:
    assert ranks(2).run(given_and_taken) == [([True, True, False], [True, True, True])] * 2
