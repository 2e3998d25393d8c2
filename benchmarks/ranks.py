"""Run a measurement on several gloo ranks of one thread each."""

import multiprocessing
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from syncbn.norm.core.exchange import exchange_for


def on_ranks(measurement: Callable[..., Any], *arguments: Any, world_size: int = 2) -> Any:
    """Run `measurement(*arguments)` in a group of spawned processes, and return rank 0's result.

    They run under Linux's default scheduling policy, like those of a library's user.

    Args:
        measurement: importable function.
        arguments: arguments of the function.
        world_size: number of ranks.

    Raises:
        RuntimeError: a rank ended with an exit code.
    """
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        ranks = [
            context.Process(
                target=_rank,
                args=(rank, world_size, store, answers, measurement, arguments),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            if process.exitcode:
                raise RuntimeError(f"a rank of the benchmark ended with exit code {process.exitcode}")
        return answers.get()


def start_together() -> None:
    """Return on all ranks within microseconds. A barrier of gloo returns up to a millisecond later on one of them."""
    dist.barrier()
    group = dist.group.WORLD
    assert group is not None
    signal = torch.zeros(1, dtype=torch.float64)
    exchange_for(group, signal).sum(signal)


def _rank(
    rank: int,
    world_size: int,
    store: str,
    answers: Any,
    measurement: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
    answer = measurement(*arguments)
    if rank == 0:
        answers.put(answer)
    dist.barrier()
    dist.destroy_process_group()
