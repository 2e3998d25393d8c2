"""Loader of batches from a stream, read and decoded ahead by threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from syncbn.data.loader import BatchLoader

Batch = tuple[Tensor, Tensor]
AHEAD = 2  # batches per thread


class StreamLoader(BatchLoader):
    """Loader of this rank's batches from a stream.

    A stream has no index: to resume in the middle of an epoch, the samples before are read again, without decoding.
    The batches don't depend on the number of threads.

    Args:
        stream: maps an epoch to its samples, in an order that is a function of the epoch.
        to_batch: maps samples to (images (N, C, H, W), labels (N)).
        batch_size: samples in a batch.
        batches: batches in an epoch; None for as many as the stream has, and then the loader has no length. There is at
            least one, which may be empty.
        num_workers: threads that decode, besides the one that reads; 0 for none.
    """

    def __init__(
        self,
        stream: Callable[[int], Iterable[dict[str, Any]]],
        to_batch: Callable[[list[dict[str, Any]]], Batch],
        batch_size: int,
        batches: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(num_workers)
        self.stream = stream
        self.to_batch = to_batch
        self.batch_size = batch_size
        self.batches = batches
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    @property
    def sampler(self) -> "StreamLoader":
        """Return itself: Lightning's loops call `loader.batch_sampler.sampler.set_epoch`."""
        return self

    batch_sampler = sampler

    def __len__(self) -> int:
        if self.batches is None:
            raise TypeError("a stream that is read to its end has no length")
        return self.batches

    def batches_from(self, start: int) -> Iterator[Batch]:
        """Batches of the epoch, without the first ones."""
        stop = None if self.batches is None else self.batches * self.batch_size
        samples = islice(self.stream(self.epoch), start * self.batch_size, stop)
        read: Iterator[Any] = iter(lambda: list(islice(samples, self.batch_size)), [])
        if self.batches is None:  # at least one batch: other ranks would wait in their metrics for a rank without one
            read = chain([next(read, [])], read)
        return map(self._batch, read) if self.num_workers == 0 else self._decoded_ahead(read)

    def _batch(self, samples: list[dict[str, Any]]) -> Batch:
        images, labels = self.to_batch(samples)
        return (images.pin_memory(), labels.pin_memory()) if torch.cuda.is_available() else (images, labels)

    def _decoded_ahead(self, read: Iterator[list[dict[str, Any]]]) -> Iterator[Batch]:
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(self.num_workers) as decoders:

            def next_batch() -> Future[Batch] | None:
                samples = next(read, None)
                return None if samples is None else decoders.submit(self._batch, samples)

            ahead = deque(reader.submit(next_batch) for _ in range(AHEAD * self.num_workers))
            try:
                while (decoding := ahead.popleft().result()) is not None:
                    ahead.append(reader.submit(next_batch))
                    yield decoding.result()
            finally:
                for future in ahead:
                    future.cancel()
