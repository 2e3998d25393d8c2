"""Soak test of exchanges over ranks of this machine, under load, comparing every sum: python -m tests.soak_exchange

    python -m tests.soak_exchange --exchanges 1000000 --ranks 4 --load 2

Sums and messages in flight of all lengths, in three groups, while compute-only processes compete for the processors.
Numbers are integers, so that the order of addition doesn't matter; rank order is tested elsewhere.
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from syncbn.norm.core.exchange import exchange_for
from syncbn.norm.core.one_shot import OneShot

LENGTHS = [0, 1, 7, 129, 129, 129, 513, 4097, 8193]
IN_FLIGHT = 6  # sometimes one more than the exchange holds


def main(arguments: list[str] | None = None) -> int:
    """Run the soak, and print how many sums were wrong."""
    parser = argparse.ArgumentParser(description="Exchanges between ranks of this machine, under load")
    parser.add_argument("--exchanges", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--load", type=int, default=2, help="processes that only compute")
    options = parser.parse_args(arguments)
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store, count = f"{folder}/store", options.exchanges
        ranks = [
            context.Process(target=_rank, args=(rank, options.ranks, store, count, answers), daemon=True)
            for rank in range(options.ranks)
        ]
        load = [context.Process(target=_compute, daemon=True) for _ in range(options.load)]
        start = time.perf_counter()
        for process in [*load, *ranks]:
            process.start()
        for process in ranks:
            process.join()
        seconds = time.perf_counter() - start
        for process in load:
            process.kill()
            process.join()
    failed = [process.exitcode for process in ranks if process.exitcode]
    compared = wrong = 0
    if not failed:
        for _ in ranks:
            rank_compared, rank_wrong = answers.get()
            compared, wrong = compared + rank_compared, wrong + rank_wrong
    print(
        f"{count:,} exchanges over {options.ranks} ranks beside {options.load} busy processes in {seconds:.0f} s: "
        f"{compared:,} sums compared, {wrong} wrong" + (f", ranks ended with {failed}" if failed else "")
    )
    return 1 if wrong or failed else 0


def _rank(rank: int, world_size: int, store: str, exchanges: int, answers: Any) -> None:
    torch.set_num_threads(1)
    meeting = dist.FileStore(store, world_size)
    timeout = timedelta(seconds=300)
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=world_size, timeout=timeout)
    members = [range(world_size), range(world_size), range(world_size - 1)]  # two with all ranks, one with fewer
    groups = [(list(ranks), dist.new_group(list(ranks))) for ranks in members]
    ends = []
    for ranks, group in groups:
        if rank in ranks:
            exchange = exchange_for(group, torch.zeros(1))
            assert isinstance(exchange, OneShot)
            ends.append(_End(exchange, ranks, rank))
    chance = random.Random(0)  # the same on all ranks
    for number in range(exchanges):
        at, length, at_once = chance.choice([0, 0, 1, 2]), chance.choice(LENGTHS), chance.random() < 0.6
        if at < len(ends):
            ends[at].exchange_one(number, length, at_once)
    for end in ends:
        while end.under_way:
            end.read()
    answers.put((sum(end.compared for end in ends), sum(end.wrong for end in ends)))
    dist.barrier()
    os._exit(0)


class _End:
    """A rank's state for a group."""

    def __init__(self, exchange: OneShot, ranks: list[int], rank: int) -> None:
        self.exchange, self.ranks, self.rank = exchange, ranks, rank
        self.under_way: deque[tuple[int, Tensor, Any]] = deque()
        self.compared = self.wrong = 0
        self.own = random.Random(rank)
        self.steps = torch.arange(max(LENGTHS), dtype=torch.float64)

    def exchange_one(self, number: int, length: int, at_once: bool) -> None:
        if self.own.random() < 1e-3:
            time.sleep(self.own.random() * 5e-3)
        buffer = self.steps[:length] * (self.rank + 1) + number
        if at_once:
            self.exchange.sum(buffer)
            self._compare(number, buffer)
        else:
            self.under_way.append((number, buffer, self.exchange.send(buffer)))
        while len(self.under_way) > IN_FLIGHT or (self.under_way and self.own.random() < 0.4):
            self.read()

    def read(self) -> None:
        number, buffer, pending = self.under_way.popleft()
        pending.wait()
        self._compare(number, buffer)

    def _compare(self, number: int, buffer: Tensor) -> None:
        factor = sum(rank + 1 for rank in self.ranks)
        expected = self.steps[: len(buffer)] * factor + number * len(self.ranks)
        self.compared += 1
        self.wrong += not torch.equal(buffer, expected)


def _compute() -> None:
    while True:
        sum(range(10_000))


if __name__ == "__main__":
    sys.exit(main())
