"""Samplers that split one sample order into global batches, and each of them over the ranks."""

from collections.abc import Iterator

import numpy as np


class GlobalBatchSampler:
    """Batches of one rank, as lists of indices; all ranks together see each global batch exactly once.

    The order of an epoch depends only on (seed, epoch). Global batch i is order[i·B·W : (i+1)·B·W], for B =
    `batch_size` and W = `world_size`, and rank r takes its r-th of W contiguous slices, whose lengths differ by at
    most one. So 2 ranks of 16 see the batches of 1 rank of 32; no sample is repeated to fill a batch; every rank has
    the same number of batches; and the last batch may be shorter, unequal, or empty on some ranks.

    Args:
        num_samples: size of the data set.
        batch_size: samples of one rank in a full batch.
        rank: rank of this process, from 0 to world_size - 1.
        world_size: number of processes.
        shuffle: whether each epoch has a new order; otherwise 0, 1, 2, ...
        seed: seed of the order.
        drop_last: leave out the last global batch when it isn't full.

    Raises:
        ValueError: a size below 1, a rank outside the world, or a global batch larger than the data.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        for name, size in {"num_samples": num_samples, "batch_size": batch_size, "world_size": world_size}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to {world_size - 1}, got {rank}")
        if batch_size * world_size > num_samples:
            raise ValueError(
                f"a batch of {batch_size} on each of {world_size} rank(s) is {batch_size * world_size} samples, "
                f"more than the {num_samples} there are; allowed: batch_size <= {num_samples // world_size}"
            )
        self.num_samples = num_samples
        self.global_batch_size = batch_size * world_size
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    @property
    def sampler(self) -> "GlobalBatchSampler":
        """Return itself: Lightning's loops call `loader.batch_sampler.sampler.set_epoch`."""
        return self

    def __len__(self) -> int:
        full, rest = divmod(self.num_samples, self.global_batch_size)
        return full if self.drop_last or rest == 0 else full + 1

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        for i in range(len(self)):
            batch = order[i * self.global_batch_size : (i + 1) * self.global_batch_size]
            start = len(batch) * self.rank // self.world_size
            stop = len(batch) * (self.rank + 1) // self.world_size
            yield batch[start:stop].tolist()

    def _order(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_samples)
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples)


class ClassShardSampler(GlobalBatchSampler):
    """Batches of one rank that contain only its own classes: rank r of W has the classes r, r + W, r + 2W, ...

    Every rank has the same number of batches: as many as the rank with the most samples needs, so other ranks have
    smaller ones. With `drop_last` all batches are full, and as many as the rank with the fewest samples has.

    Args:
        classes: class of each sample, 0 to K - 1, (num_samples,).
        batch_size: largest number of samples of one rank in a batch.
        rank: rank of this process, from 0 to world_size - 1.
        world_size: number of processes, at most K.
        shuffle: whether each epoch has a new order.
        seed: seed of the order.
        drop_last: only full batches.

    Raises:
        ValueError: as `GlobalBatchSampler`; more ranks than classes; a rank with fewer samples than a batch.
    """

    def __init__(
        self,
        classes: np.ndarray,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(len(classes), batch_size, rank, world_size, shuffle, seed, drop_last)
        sizes = np.bincount(classes % world_size, minlength=world_size)
        if sizes.min() < batch_size:
            raise ValueError(
                f"shard_by_class gives rank {sizes.argmin()} of {world_size} {sizes.min()} samples, fewer than a batch "
                f"of {batch_size}: use at most as many ranks as there are classes ({classes.max() + 1}), or smaller "
                "batches"
            )
        self.classes = classes
        self.batch_size = batch_size
        self.steps = sizes.min() // batch_size if drop_last else -(-sizes.max() // batch_size)

    def __len__(self) -> int:
        return int(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        own = order[self.classes[order] % self.world_size == self.rank]
        if self.drop_last:
            own = own[: self.steps * self.batch_size]
        for batch in np.array_split(own, self.steps):
            yield batch.tolist()
