"""Division of any DataLoader over the ranks, equivalent to one process."""

import copy
import random
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset


class SharedBatches:
    """Batches of one rank; all ranks together see the samples of the loader's own sampler once.

    The sampler's order is the same on every rank and new in each epoch: all random numbers, including its own
    generator's, are a function of the seed and the epoch. It is split into global batches, and these into one
    contiguous part per rank with sizes that differ by at most one, as in `GlobalBatchSampler`. Batches of a custom
    batch sampler aren't split: the ranks take them in turn.

    No sample is repeated to fill a batch. In training every rank has the same number of non-empty batches: if an order
    doesn't divide, the last samples, fewer than the number of ranks, are left out. In evaluation nothing is left out,
    and a rank may have one batch less than another.

    Args:
        order: a sampler, or a batch sampler.
        batch_size: samples of one rank in a batch; None if the order is one of batches.
        drop_last: leave out the last global batch when it isn't full.
        rank: rank of this process, from 0 to world_size - 1.
        world_size: number of processes.
        seed: seed of the order.
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
        """Number of last samples or batches of the order that are left out, since not every rank would have one."""
        return self._left_out(len(self.order))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    @property
    def sampler(self) -> "SharedBatches":
        """Return itself: Lightning's loops call `loader.batch_sampler.sampler.set_epoch`."""
        return self

    def __len__(self) -> int:
        # A batch sampler's number of batches may depend on its random order.
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
        """Positions of each of this rank's batches in an order of a given length."""
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
            np.random.seed(seed)  # noqa: NPY002  # custom samplers may use it
            generator = getattr(order, "generator", None)
            if not isinstance(generator, torch.Generator):
                return list(order)
            state = generator.get_state()  # ranks may have seeded their generators differently
            generator.manual_seed(seed)
            order = list(order)
            generator.set_state(state)
            return order


def shared(loader: DataLoader[Any], rank: int, world_size: int, seed: int, training: bool) -> DataLoader[Any]:
    """Copy a DataLoader with the batches of one rank; all other settings are kept, and the original isn't changed.

    A loader that already divides its data is returned unchanged: one with a `DistributedSampler` or a sampler that
    knows its rank, or with an `IterableDataset`, which can't be checked.
    """
    if isinstance(loader.dataset, IterableDataset) or any(map(_knows_its_rank, _samplers(loader))):
        return loader
    place: Any = {"rank": rank, "world_size": world_size, "seed": seed, "training": training}
    made = copy.copy(loader)  # a subclass may have different arguments
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
    """Set an attribute past DataLoader's `__setattr__`, which refuses it since running workers keep the old value."""
    object.__setattr__(loader, name, value)
    object.__setattr__(loader, "_iterator", None)
