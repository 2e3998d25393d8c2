"""Functions that tests of the one-shot exchange run on ranks: sums over groups and their numbers."""

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from syncbn.norm.core import exchange, one_shot
from syncbn.norm.core.choice import VARIABLE
from syncbn.norm.core.exchange import exchange_for
from syncbn.norm.core.one_shot import OneShot
from syncbn.norm.core.segment import Segment


@contextmanager
def asked_for(choice: str | None) -> Iterator[None]:
    """Make groups use the exchange of SYNCBN_EXCHANGE=`choice`, even after another choice."""
    before = os.environ.pop(VARIABLE, None)
    if choice is not None:
        os.environ[VARIABLE] = choice
    exchange._AGREED.clear()
    try:
        yield
    finally:
        exchange._AGREED.clear()
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def new_one_shot() -> tuple[ProcessGroup, OneShot]:
    """Make a group of all ranks and its exchange."""
    group = dist.new_group()
    return group, one_shot_of(group)


def one_shot_of(group: ProcessGroup) -> OneShot:
    """One-shot exchange of a group."""
    with asked_for("one_shot"):
        found = exchange_for(group, torch.zeros(1))
    assert isinstance(found, OneShot)
    return found


def with_in_flight(in_flight: int) -> OneShot:
    """Exchange of all ranks with a number of messages in flight."""
    group = dist.new_group()
    segment = Segment.create(one_shot.segment_size(group.size(), in_flight)) if group.rank() == 0 else None
    invitation: list[Any] = [segment.invitation() if segment else None]
    dist.broadcast_object_list(invitation, 0)
    segment = segment or Segment.open(invitation[0])
    segment.lock(group.rank())
    dist.barrier()
    _KEPT.append(group)  # an exchange holds its group weakly
    return OneShot(segment, group, in_flight)


_KEPT: list[ProcessGroup] = []


def part(rank: int, message: int, length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers of a rank for a message, whose sum depends on the order."""
    generator = torch.Generator().manual_seed(1000 * message + rank)
    return torch.randn(length, dtype=dtype, generator=generator) * 10.0 ** (rank % 3)


def expected_sum(ranks: list[int], message: int, length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Sum in rank order."""
    total = part(ranks[0], message, length, dtype)
    for rank in ranks[1:]:
        total = total + part(rank, message, length, dtype)
    return total


def sums(lengths: list[int], dtype: torch.dtype) -> list[Tensor]:
    _, exchange = new_one_shot()
    answers = []
    for message, length in enumerate(lengths):
        buffer = part(dist.get_rank(), message, length, dtype)
        exchange.sum(buffer)
        answers.append(buffer)
    return answers


def layouts() -> dict[str, Tensor]:
    """Sums of buffers that aren't plain rows of numbers."""
    _, exchange = new_one_shot()
    rank = dist.get_rank()
    grid = torch.arange(12, dtype=torch.float64).view(3, 4) + rank
    buffers = {
        "transposed": grid.clone().T,
        "strided": grid.clone()[:, ::2],
        "0-d": torch.tensor(2.0 + rank),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(grid.clone()),
        "negative view": torch.complex(grid, grid + 1).conj().imag,
    }
    with torch.no_grad():
        for name, buffer in buffers.items():
            if name in ("strided", "0-d"):
                exchange.send(buffer).wait()
            else:
                exchange.sum(buffer)
    return {name: buffer.detach().resolve_neg().clone() for name, buffer in buffers.items()}


def late_and_in_flight(in_flight: int, messages: int, slow_rank: int, seed: int) -> int:
    """Count wrong sums of messages in flight when a rank sends and reads late, at random."""
    rank, ranks = dist.get_rank(), list(range(dist.get_world_size()))
    exchange = with_in_flight(in_flight)
    chance, own = random.Random(seed), random.Random(seed + 1 + rank)  # common choices, and each rank's timing
    under_way: list[tuple[int, int, Tensor, Any]] = []
    wrong = 0

    def read(at: int) -> int:
        message, length, buffer, pending = under_way.pop(at)
        pending.wait()
        return int(not torch.equal(buffer, expected_sum(ranks, message, length)))

    for message in range(messages):
        if rank == slow_rank and own.random() < 0.2:
            time.sleep(own.random() * 5e-3)
        length = chance.choice([0, 1, 129, 4097, 9000, 30_000])
        buffer = part(rank, message, length)
        if chance.random() < 0.3:
            exchange.sum(buffer)
            wrong += not torch.equal(buffer, expected_sum(ranks, message, length))
        else:
            under_way.append((message, length, buffer, exchange.send(buffer)))
        while len(under_way) > 12 or (
            under_way and own.random() < 0.3
        ):  # more than fit, and each rank in its own order
            wrong += read(own.randrange(len(under_way)))
    while under_way:
        wrong += read(0)
    return wrong


def groups_at_once(rounds: int) -> int:
    """Count wrong sums over all ranks, over pairs, and over all but one, with each group in its own thread."""
    rank = dist.get_rank()
    members = [[0, 1, 2, 3], [0, 2], [1, 3], [1, 2, 3], [0, 1]]
    made = [(ranks, dist.new_group(ranks)) for ranks in members]
    mine = [(ranks, group) for ranks, group in made if rank in ranks]
    exchanges = [(ranks, one_shot_of(group)) for ranks, group in mine]
    wrong = []

    def work(ranks: list[int], exchange: OneShot) -> None:
        for message in range(rounds):
            buffer = part(rank, message, 129)
            if message % 3:
                exchange.sum(buffer)
            else:
                exchange.send(buffer).wait()
            wrong.append(not torch.equal(buffer, expected_sum(ranks, message, 129)))

    threads = [threading.Thread(target=work, args=pair) for pair in exchanges]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == rounds * len(mine)
    return sum(wrong)


def made_and_destroyed(times: int) -> tuple[int, int, int]:
    """Count wrong sums over groups that are created repeatedly; returns remaining files and maps, too."""
    wrong = 0
    files = maps = 0
    for message in range(times):
        group, exchange = new_one_shot()
        buffer = part(dist.get_rank(), message, 129)
        exchange.sum(buffer)
        wrong += not torch.equal(buffer, expected_sum(list(range(group.size())), message, 129))
        dist.destroy_process_group(group)
        del exchange, group
        if message == 0:
            files, maps = _open_files(), _shared_maps()
    return wrong, _open_files() - files, _shared_maps() - maps


def _open_files() -> int:
    return sum("/dev/shm/" in _target(fd) for fd in os.listdir("/proc/self/fd"))


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def _shared_maps() -> int:
    with open("/proc/self/maps") as file:
        return sum("/dev/shm/" in line for line in file)


def different_lengths() -> str:
    """Errors of a rank when ranks send different messages, and of its next sum."""
    group, exchange = new_one_shot()
    texts = []
    for _ in range(2):
        try:
            exchange.sum(torch.ones(3 + group.rank(), dtype=torch.float64))
        except dist.DistBackendError as error:
            texts.append(str(error))
    assert len(set(texts)) == 1
    return texts[0]
