"""Sum of a layer's 2C + 1 numbers over ranks of this machine: one-shot exchange compared with gloo's all-reduce."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.ranks import on_ranks
from benchmarks.rows import Row, paired
from syncbn.norm.core.exchange import Collective, exchange_for
from syncbn.norm.core.one_shot import OneShot

CHANNELS = (64, 2048)
# Upper limits of our time relative to gloo's, by number of ranks.
LIMITS = {2: 1 / 100, 4: 1 / 40, 8: 1 / 40}
REPEATS = 15
CALLS = {2: (1000, 100), 4: (400, 20), 8: (200, 8)}  # calls in a row: ours, gloo's


def measure() -> list[Row]:
    """Time both in turns, for each number of ranks and channels."""
    return [row for world_size in LIMITS for row in _rows(world_size)]


def _rows(world_size: int) -> list[Row]:
    area = f"a sum of 2C + 1 float64 numbers, {world_size} ranks of 1 thread, Linux's default policy"
    times = on_ranks(_time, world_size, world_size=world_size)
    return [
        paired(area, f"one-shot exchange, C = {channels}", "gloo's all-reduce", "µs", pairs, LIMITS[world_size])
        for channels, pairs in times.items()
    ]


def _time(world_size: int) -> dict[int, list[tuple[float, float]]]:
    """Microseconds per call, ours and gloo's, in each repeat."""
    group = dist.group.WORLD
    assert group is not None
    theirs, times = Collective(group), {}
    for channels in CHANNELS:
        buffer = torch.randn(2 * channels + 1, dtype=torch.float64)
        ours = exchange_for(group, buffer)
        assert isinstance(ours, OneShot), "this machine has no memory for ranks to share"
        counts = CALLS[world_size]
        times[channels] = [
            (_microseconds(ours.sum, buffer, counts[0]), _microseconds(theirs.sum, buffer, counts[1]))
            for _ in range(1 + REPEATS)
        ][1:]
    return times


def _microseconds(sum_over_ranks: Callable[[Tensor], None], buffer: Tensor, calls: int) -> float:
    dist.barrier()
    start = time.perf_counter()
    for _ in range(calls):
        sum_over_ranks(buffer.zero_())
    return 1e6 * (time.perf_counter() - start) / calls
