"""Anybody's DataLoader shared among ranks, as one process would go through it."""

import copy
import random
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset


class SharedBatches:
    """The batches of one rank, such that all ranks together see what the loader's own sampler chooses, once.

    The sampler's order is drawn anew each epoch, on every rank alike: by random numbers, its own generator's too, that
    are a function of the seed and the epoch. It is cut into global batches, and these into one contiguous part a rank,
    whose sizes differ by one at most, as `GlobalBatchSampler` does. The batches of a batch sampler of one's own aren't
    cut: the ranks take one each in turn.

    No sample is repeated to fill a batch. In training every rank has the same number of batches, none of them empty: of
    an order that doesn't divide, the last samples, fewer than there are ranks, are left out. In evaluation nothing is
    left out, and a rank may have one batch less than another.

    Args:
        order: a sampler, or a batch sampler.
        batch_size: samples of one rank in a batch; None where the order is one of batches.
        drop_last: leave the last global batch out when it isn't full.
        rank: this process, from 0 to world_size - 1.
        world_size: number of processes.
        seed: of the order.
        training: whether the ranks must have equally many batches.

    Raises:
        ValueError: an order without a length, or too short for a batch on each rank.
    """

    def __init__(
        self,
        order: Any,
        batch_size: int | None,
        drop_last: bool,
        rank: int,
        world_size: int,
        seed: int = 0,
        training: bool = True,
    ) -> None:
        if not isinstance(order, Sized):
            raise ValueError(
                f"{type(order).__name__} has no length, and can't be shared among {world_size} ranks: give it a "
                "__len__, or let it share by itself and say trainer.use_distributed_sampler=false"
            )
        self.order = order
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.training = training
        self.epoch = 0
        least = world_size * (batch_size if batch_size and drop_last else 1)
        if len(order) < least:
            what = "batches" if batch_size is None else "samples"
            raise ValueError(
                f"{len(order)} {what} are too few for {world_size} ranks"
                + (f" with full batches of {batch_size}" if batch_size and drop_last else "")
                + f", which need {least}: use fewer ranks, or smaller batches"
            )

    @property
    def left_out(self) -> int:
        """How many samples, or batches, at the end of the order no rank has, because not every rank would have one."""
        return self._left_out(len(self.order))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    @property
    def sampler(self) -> "SharedBatches":
        """Itself: a Lightning loop calls `loader.batch_sampler.sampler.set_epoch`."""
        return self

    def __len__(self) -> int:
        # How many batches a batch sampler makes may depend on the order that it draws.
        return len(self._parts(len(self._drawn() if self.batch_size is None else self.order)))

    def __iter__(self) -> Iterator[Any]:
        order = self._drawn()
        for part in self._parts(len(order)):
            yield order[part.start] if self.batch_size is None else order[part]

    def _left_out(self, total: int) -> int:
        if not self.training or (self.batch_size is not None and self.drop_last):
            return 0
        rest = total % (self.world_size * (self.batch_size or 1))
        return rest if rest < self.world_size else 0

    def _parts(self, total: int) -> list[slice]:
        """The places of each of this rank's batches in an order of so many."""
        total, size = total - self._left_out(total), self.world_size * (self.batch_size or 1)
        if self.batch_size is not None and self.drop_last:
            total -= total % size
        parts = []
        for start in range(0, total, size):
            length = min(size, total - start)
            if self.batch_size is None:
                part = slice(start + self.rank, min(start + self.rank + 1, total))
            else:
                part = slice(
                    start + length * self.rank // self.world_size, start + length * (self.rank + 1) // self.world_size
                )
            if part.start < part.stop:
                parts.append(part)
        return parts

    def _drawn(self) -> list[Any]:
        order: Any = self.order
        for one in (order, getattr(order, "sampler", None)):
            if one is not None and hasattr(one, "set_epoch"):
                one.set_epoch(self.epoch)
        with isolate_rng(include_cuda=False):
            seed = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  # what a sampler of somebody's draws from
            generator = getattr(order, "generator", None)
            if not isinstance(generator, torch.Generator):
                return list(order)
            state = generator.get_state()  # the ranks may have seeded theirs differently
            generator.manual_seed(seed)
            order = list(order)
            generator.set_state(state)
            return order


def shared(loader: DataLoader[Any], rank: int, world_size: int, seed: int, training: bool) -> DataLoader[Any]:
    """A DataLoader like another, with the batches of one rank; all else, and the loader itself, stays as it is.

    One that shares by itself is returned: it has a `DistributedSampler`, or a sampler that knows its rank, or it reads
    an `IterableDataset`, of which nobody can tell.
    """
    if isinstance(loader.dataset, IterableDataset) or any(map(_knows_its_rank, _samplers(loader))):
        return loader
    place: Any = {"rank": rank, "world_size": world_size, "seed": seed, "training": training}
    made = copy.copy(loader)  # a subclass may take other arguments than its attributes
    batches: Any = loader.batch_sampler
    if batches is None:  # the data set makes whole batches
        _set(made, "sampler", SharedBatches(loader.sampler, None, False, **place))
    elif type(batches) is BatchSampler:
        shares = SharedBatches(batches.sampler, batches.batch_size, batches.drop_last, **place)
        _set(made, "batch_sampler", shares)
    else:
        _set(made, "batch_sampler", SharedBatches(batches, None, False, **place))
    return made


def _samplers(loader: DataLoader[Any]) -> list[Any]:
    return [loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]


def _knows_its_rank(sampler: Any) -> bool:
    names = ("num_replicas", "world_size", "num_shards", "num_processes")
    return isinstance(sampler, DistributedSampler | SharedBatches) or (
        hasattr(sampler, "rank") and any(hasattr(sampler, name) for name in names)
    )


def _set(loader: DataLoader[Any], name: str, value: Any) -> None:
    """Past DataLoader's own `__setattr__`, which refuses this: workers that run would go on with the old one."""
    object.__setattr__(loader, name, value)
    object.__setattr__(loader, "_iterator", None)
