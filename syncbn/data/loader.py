"""Loaders over data in memory whose order and augmentation are reproduced by a resumed run."""

import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from syncbn.data.sampler import GlobalBatchSampler

Fetch = Callable[[list[int], int], tuple[Tensor, Tensor]]


class BatchLoader(ABC):
    """Loader of this rank's batches that knows its position in the epoch.

    A batch is a function of the seed, the epoch and its number. So the position in an epoch is one number, kept in the
    trainer's checkpoint by `state_dict`, and a run stopped in the middle of an epoch continues with the next batch.

    Args:
        num_workers: number of workers that prefetch batches.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._delivered = 0  # batches of the current epoch that the training loop has taken
        self._resume_at = 0
        self.limit: int | None = None  # batches of an epoch, where a trainer takes fewer than there are

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches_from(self, start: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Batches of the epoch, without the first ones."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, self._resume_at = self._resume_at, 0
        self._delivered = start
        for batch in self.batches_from(start):
            self._delivered += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Number of batches of the epoch that were delivered."""
        return {"delivered": self._delivered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next iteration after the delivered batches; after a finished epoch, at the next one."""
        self._delivered = delivered = int(state["delivered"])
        whole = len(self) if self.limit is None else self.limit
        self._resume_at = delivered if delivered < whole else 0


class IndexedLoader(BatchLoader):
    """Loader of the batches `fetch(indices, epoch)` for a sampler's indices.

    Args:
        fetch: maps (indices, epoch) to (images (N, C, H, W), labels (N)); N may be 0.
        batch_sampler: index batches of this rank.
        num_workers: processes that call `fetch` ahead of time, two batches each; 0 to call it on demand.
    """

    def __init__(self, fetch: Fetch, batch_sampler: GlobalBatchSampler, num_workers: int = 0) -> None:
        super().__init__(num_workers)
        self.fetch = fetch
        self.batch_sampler = batch_sampler

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def batches_from(self, start: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Batches of the epoch, without the first ones."""
        batches, epoch = list(islice(self.batch_sampler, start, None)), self.batch_sampler.epoch
        if self.num_workers == 0:
            return (self.fetch(indices, epoch) for indices in batches)
        if multiprocessing.get_start_method() == "forkserver":  # as from Python 3.14 on
            # Otherwise each worker of each epoch would import torch and Lightning, for seconds.
            multiprocessing.set_forkserver_preload(["__main__", __name__, self.fetch.__module__])
        return DataLoader(
            _Batches(self.fetch, batches, epoch),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # seeds the workers, which would otherwise draw from the global state
        )


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batches of an epoch by number, for workers."""

    def __init__(self, fetch: Fetch, batches: list[list[int]], epoch: int) -> None:
        self.fetch = fetch
        self.batches = batches
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.fetch(self.batches[number], self.epoch)
