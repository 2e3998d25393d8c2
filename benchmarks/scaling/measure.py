"""Times of the collectives of two designs of synchronized batch normalization, between gloo ranks on this machine."""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.scaling.model import Point
from syncbn.machine.scaling import Kind

WORLDS = (2, 4, 8, 16)
CHANNELS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384)
ROUNDS, BLOCKS, CALLS = 4, 3, 8


@dataclass(frozen=True)
class Message:
    """Message of a norm layer with `channels` in one pass.

    Ours: sums and a count in float64, by all-reduce. The gathering design, `torch.nn.SyncBatchNorm`'s: mean, inverse
    deviation and count of each rank in float32 by all-gather, and in the backward pass two sums by all-reduce.
    """

    design: str
    direction: str
    channels: int

    @property
    def kind(self) -> Kind:
        return "all_gather" if (self.design, self.direction) == ("gather", "forward") else "all_reduce"

    @property
    def numbers(self) -> int:
        return 2 * self.channels + (self.direction == "forward")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.design == "ours" else torch.float32

    @property
    def size(self) -> int:
        return self.numbers * self.dtype.itemsize


@dataclass(frozen=True)
class Timing:
    """Seconds of one call of a message among `ranks`: the mean of each of several blocks of calls.

    The first quartile of the blocks represents all: disturbances, such as other programs, only lengthen a block.
    """

    message: Message
    ranks: int
    blocks: list[float]

    @property
    def quartiles(self) -> list[float]:
        return statistics.quantiles(self.blocks, n=4)

    @property
    def seconds(self) -> float:
        return self.quartiles[0]

    @property
    def point(self) -> Point:
        return Point(self.message.kind, self.ranks, self.message.size, self.seconds)


def messages(channels: Sequence[int] = CHANNELS) -> list[Message]:
    return [Message(d, p, c) for c in channels for d in ("ours", "gather") for p in ("forward", "backward")]


def cores() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0))


def measure(worlds: Sequence[int] = WORLDS, channels: Sequence[int] = CHANNELS) -> tuple[list[Timing], str]:
    """Time every message in every world; returns the timings and the scheduling policy of the ranks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed"])  # one import for all ranks
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(rank, worlds, channels, f"{folder}/store", answers), daemon=True)
            for rank in range(max(worlds))
        ]
        for process in ranks:
            process.start()
        result = answers.get()
        for process in ranks:
            process.join()
            if process.exitcode:
                raise RuntimeError(f"a rank of the measurement ended with exit code {process.exitcode}")
    return result


def _rank(
    rank: int,
    worlds: Sequence[int],
    channels: Sequence[int],
    store: str,
    answers: "multiprocessing.SimpleQueue[tuple[list[Timing], str]]",
) -> None:
    torch.set_num_threads(1)
    scheduling = _take_a_core(rank)
    world = max(worlds)
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    groups = {size: dist.new_group(list(range(size))) for size in worlds}
    timings = {size: [Timing(message, size, []) for message in messages(channels)] for size in groups}
    for _ in range(ROUNDS):  # spread out, so that a disturbance of seconds doesn't hit all blocks of a message
        for size, group in groups.items():
            dist.barrier()  # ranks outside the group wait here without using a core
            for timing in timings[size] if rank < size else []:
                timing.blocks.extend(_time(timing.message, size, group))
    dist.barrier()
    if rank == 0:
        answers.put(([timing for world in timings.values() for timing in world], scheduling))
    dist.barrier()
    dist.destroy_process_group()


def _take_a_core(rank: int) -> str:
    """Pin ranks evenly to cores, and schedule them ahead of other programs.

    Without that priority, timings on shared cores measure how long the scheduler runs other programs.
    """
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {available[rank % len(available)]})
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        return "SCHED_FIFO"
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    return "SCHED_BATCH"


def _time(message: Message, world: int, group: dist.ProcessGroup) -> list[float]:
    call = _call(message, world, group)
    call()
    blocks = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        blocks.append((time.perf_counter() - start) / CALLS)
    return blocks


def _call(message: Message, world: int, group: dist.ProcessGroup) -> Callable[[], object]:
    sent = torch.zeros(message.numbers, dtype=message.dtype)
    if message.kind == "all_reduce":
        return lambda: dist.all_reduce(sent, group=group)
    received: list[Tensor] = list(sent.new_empty(world, message.numbers))
    return lambda: dist.all_gather(received, sent, group=group)
