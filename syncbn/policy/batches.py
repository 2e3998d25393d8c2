"""Batches of the policies, and their iteration in step over ranks."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from syncbn.norm.core.exchange import all_sum

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def inputs_of(batch: Any, device: torch.device) -> Tensor:
    """Input of a model: the batch itself, or the first of (inputs, labels, ...), on the model's device.

    Raises:
        TypeError: the batch is neither.
    """
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"a batch must be a tensor, or a tuple or list that begins with one, got {type(batch).__name__}; "
            "give (batch['image'] for batch in loader), for example"
        )
    return inputs.to(device)


def in_step(
    batches: Iterable[Any], max_batches: int | None, device: torch.device, group: ProcessGroup | None
) -> Iterator[Tensor]:
    """Iterate over the inputs of the batches, as long as every rank of the group has one.

    Raises:
        ValueError: on every rank, if there are no batches, if only some ranks have a next one, or if
            `max_batches` isn't at least 1.
    """
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches must be at least 1, or None for all, got {max_batches}")
    iterator = islice(batches, max_batches)
    count = 0
    while True:
        inputs = next((inputs_of(batch, device) for batch in iterator), None)
        having = all_sum(torch.tensor(0.0 if inputs is None else 1.0, device=device), group).item()
        if having == 0:
            break
        if inputs is None or (group is not None and having < group.size()):
            raise ValueError(
                f"after {count} batches {having:.0f} of the ranks have another one, the others have none: give every "
                "rank the same number of batches (of any size), or max_batches="
            )
        count += 1
        yield inputs
    if count == 0:
        raise ValueError("there are no batches; a loader that is empty, or a generator that is used up?")


def unwrapped(model: nn.Module) -> nn.Module:
    """Model inside DDP, whose forward would broadcast buffers."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's first parameter or buffer."""
    tensor = next((t for tensors in (model.parameters(), model.buffers()) for t in tensors), None)
    return torch.device("cpu") if tensor is None else tensor.device


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Restore the state of Python's and torch's generators, on the CPU and on `device`, at the end."""
    python = random.getstate()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
