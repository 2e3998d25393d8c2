"""Batches out of memory, in an order and with an augmentation that a resumed run finds again."""

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
    """Iterates over an epoch's batches of this rank, and knows how many of them it has delivered.

    Nothing is drawn here: what a batch holds is a function of the seed, the epoch and its number. So the place in an
    epoch is one number, kept in the trainer's checkpoint by `state_dict`, and a run stopped in the middle of an epoch
    goes on with the batch it would have seen.

    Args:
        num_workers: of what makes the batches ahead of time.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._delivered = 0  # batches of the current epoch that the training loop has taken
        self._resume_at = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches_from(self, start: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Those of the epoch, without the first ones."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, self._resume_at = self._resume_at, 0
        self._delivered = start
        for batch in self.batches_from(start):
            self._delivered += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the epoch have been delivered."""
        return {"delivered": self._delivered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next iteration after the batches that were delivered; a finished epoch starts anew."""
        delivered = int(state["delivered"])
        self._resume_at = delivered if delivered < len(self) else 0


class IndexedLoader(BatchLoader):
    """The batches `fetch(indices, epoch)` of a sampler's indices.

    Args:
        fetch: from (indices, epoch) to (images (N, C, H, W), labels (N)); N may be 0.
        batch_sampler: the batches of this rank.
        num_workers: processes that call `fetch` ahead of time, two batches each; 0 calls it when a batch is asked for.
    """

    def __init__(self, fetch: Fetch, batch_sampler: GlobalBatchSampler, num_workers: int = 0) -> None:
        super().__init__(num_workers)
        self.fetch = fetch
        self.batch_sampler = batch_sampler

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def batches_from(self, start: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Those of the epoch, without the first ones."""
        batches, epoch = list(islice(self.batch_sampler, start, None)), self.batch_sampler.epoch
        if self.num_workers == 0:
            return (self.fetch(indices, epoch) for indices in batches)
        return DataLoader(
            _Batches(self.fetch, batches, epoch),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # for the seed of its workers, which is otherwise drawn from the global state
        )


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """An epoch's batches by number, for workers."""

    def __init__(self, fetch: Fetch, batches: list[list[int]], epoch: int) -> None:
        self.fetch = fetch
        self.batches = batches
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.fetch(self.batches[number], self.epoch)
