"""Training with unequal numbers of batches on the ranks."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from syncbn.launch.faults import Fault
from syncbn.norm.core import compat
from syncbn.training.host_group import host_group
from syncbn.training.strategy_options import Policy


class UnequalBatches(Fault, ValueError):
    """A rank has no batch while another one has."""


def over_ranks(loader: Any, policy: Policy) -> Any:
    """Return the loader if it has the same length on all ranks; else one that ends on all ranks together.

    All ranks must call it at the same place.

    Raises:
        UnequalBatches: the lengths differ, and `policy` is "fail".
    """
    if (group := host_group()) is None:
        return loader
    lengths: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(lengths, _length(loader), group=group)
    if None in lengths:
        return Together(loader, policy, None)
    if len(set(lengths)) == 1:
        return loader
    if policy == "fail":
        shown = ", ".join(f"{length} on rank {rank}" for rank, length in enumerate(lengths[:8]))
        raise UnequalBatches(f"the ranks have unequal numbers of training batches: {shown}; {_ADVICE}")
    return Together(loader, policy, max(lengths))


class Together:
    """Loader of this rank's batches, then empty ones as long as another rank has any.

    Before each batch the ranks sum how many of them have one; at 0 all of them end. An empty batch is the rank's last
    one with 0 samples. It takes part in every collective and contributes nothing if the loss is
    `syncbn.mean_over_ranks`, so the training equals that of one process on the combined batches of all ranks.

    Args:
        loader: loader of this rank's batches, nested tuples, lists and dicts of tensors (N, *).
        policy: "train", or "fail" to raise at the first batch that some rank lacks.
        length: largest number of batches of a rank; None if unknown.

    Raises:
        UnequalBatches: as above; or a rank has no batch at all from which to make an empty one.
    """

    def __init__(self, loader: Any, policy: Policy, length: int | None) -> None:
        self.loader, self.policy, self.length = loader, policy, length

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("the number of batches isn't known")
        return self.length

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # while a copy is created
            raise AttributeError(name)
        return getattr(self.loader, name)

    @property
    def worker_init_fn(self) -> Any:
        """The wrapped loader's, which Lightning sets to seed the workers."""
        return self.loader.worker_init_fn

    @worker_init_fn.setter
    def worker_init_fn(self, function: Any) -> None:
        self.loader.worker_init_fn = function

    def __iter__(self) -> Iterator[Any]:
        batches, empty, world_size = iter(self.loader), None, dist.get_world_size()
        for number in itertools.count(1):
            batch = next(batches, None)
            have = _sum(int(batch is not None))
            if have == 0:
                return
            if have < world_size and self.policy == "fail":
                raise UnequalBatches(f"only {have} of {world_size} ranks have a training batch {number}; {_ADVICE}")
            if have < world_size and number == 1:
                raise UnequalBatches(f"only {have} of {world_size} ranks have a training batch at all: give each one")
            if batch is not None:
                empty = compat.tree_map_only(Tensor, _emptied, batch)
            yield empty if batch is None else batch


def _sum(number: int) -> int:
    total = torch.tensor(number)
    dist.all_reduce(total, group=host_group())
    return int(total)


def _emptied(part: Tensor) -> Tensor:
    return part[:0] if part.dim() else part


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


_ADVICE = (
    "give every rank as many, or take trainer.strategy.unequal_batches=train, which feeds the others empty batches and "
    "needs a loss like syncbn.mean_over_ranks of the samples' losses"
)
