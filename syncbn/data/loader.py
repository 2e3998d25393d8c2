"""Batches out of memory, in an order and with an augmentation that a resumed run finds again."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor

from syncbn.data.sampler import GlobalBatchSampler

Fetch = Callable[[list[int], int], tuple[Tensor, Tensor]]


class BatchLoader:
    """Iterates over `fetch(indices, epoch)` for the batches of a sampler.

    Nothing is drawn here: what a batch holds is a function of the sampler's seed, the epoch and the indices. So the
    place in an epoch is one number, kept in the trainer's checkpoint by `state_dict`, and a run stopped in the middle
    of an epoch goes on with the batch it would have seen.

    Args:
        fetch: from (indices, epoch) to (images (N, C, H, W), labels (N)); N may be 0.
        batch_sampler: the batches of this rank.
    """

    def __init__(self, fetch: Fetch, batch_sampler: GlobalBatchSampler) -> None:
        self.fetch = fetch
        self.batch_sampler = batch_sampler
        self._delivered = 0  # batches of the current epoch that the training loop has taken
        self._resume_at = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, self._resume_at = self._resume_at, 0
        self._delivered = start
        for indices in islice(self.batch_sampler, start, None):
            self._delivered += 1
            yield self.fetch(indices, self.batch_sampler.epoch)

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the epoch have been delivered."""
        return {"delivered": self._delivered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next iteration after the batches that were delivered; a finished epoch starts anew."""
        delivered = int(state["delivered"])
        self._resume_at = delivered if delivered < len(self) else 0
