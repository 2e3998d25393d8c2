"""A user's batch samplers, and data sets of whole batches, shared among ranks batch by batch."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
)

from tests.data.test_shared import Numbers, Pairs, flat, parts


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_sampler_of_ones_own_is_shared_batch_by_batch(training: bool) -> None:
    found = parts(lambda: DataLoader(Numbers(22), batch_sampler=Pairs(22)), 2, training=training)
    assert [len(batches) for batches in found] == ([5, 5] if training else [6, 5])
    every = flat(found)
    assert all(b == a + 1 for a, b in every)
    assert len({tuple(batch) for batch in every}) == len(every)


class Iterations(Sampler[list[int]]):
    """As detectron2's and maskrcnn-benchmark's: batches of another batch sampler, again and again, up to a number."""

    def __init__(self, batches: Any, iterations: int) -> None:
        self.batches, self.iterations = batches, iterations

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[list[int]]:
        done = 0
        while True:
            for batch in self.batches:
                if done == self.iterations:
                    return
                done += 1
                yield batch


class NeedsMore(BatchSampler):
    """Can't be made again from `sampler`, `batch_size` and `drop_last` alone."""

    def __init__(self, lengths: list[int], tokens: int) -> None:
        super().__init__(RandomSampler(Numbers(len(lengths))), 1, False)
        self.lengths, self.tokens = lengths, tokens

    def __len__(self) -> int:
        return len(list(iter(self)))  # as many as the order makes

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in self.sampler:
            if sum(self.lengths[i] for i in batch) + self.lengths[index] > self.tokens:
                yield batch
                batch = []
            batch.append(index)
        yield batch


class OfBatches(Sampler[list[int]]):
    """Batches of the batches of another one."""

    def __init__(self, batches: Any, count: int) -> None:
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return len(self.batches) // self.count

    def __iter__(self) -> Iterator[list[int]]:
        several = list(self.batches)
        for start in range(0, len(self) * self.count, self.count):
            yield flat(several[start : start + self.count])


class ByEpoch(Sampler[list[int]]):
    """Has an order of the epoch that it is told, and of no random numbers."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[self.epoch, i] for i in range(4)])


BATCHES = {
    "iterations": lambda: Iterations(BatchSampler(RandomSampler(Numbers(9)), 2, False), 12),
    "of batches": lambda: OfBatches(BatchSampler(RandomSampler(Numbers(24)), 2, False), 3),
    "epoch": ByEpoch,
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batch_samplers_of_other_shapes_are_shared(kind: str) -> None:
    """As people have brought them to Lightning: #5145, #20272, #13316."""
    first, again, second = (
        parts(lambda: DataLoader(Numbers(24), batch_sampler=BATCHES[kind]()), 2, epoch) for epoch in (0, 0, 1)
    )
    assert first == again
    assert first != second
    torch.manual_seed(0)
    assert len(flat(first)) == len(BATCHES[kind]())
    if kind == "of batches":
        assert sorted(flat(flat(first))) == list(range(24))
        assert {len(batch) for batch in flat(first)} == {6}
    if kind == "epoch":
        assert first == [[[0, 0], [0, 2]], [[0, 1], [0, 3]]]


def test_a_batch_sampler_whose_length_depends_on_its_order_is_shared_by_the_order_that_is_drawn() -> None:
    """Lightning #12689: one that can't be made again, here with batches of so many tokens."""
    lengths = [1, 5, 2, 7, 3, 4, 6, 2, 1, 8, 2, 2]
    found = parts(lambda: DataLoader(Numbers(12), batch_sampler=NeedsMore(lengths, 10)), 2)
    assert len(found[0]) == len(found[1])
    every = flat(flat(found))
    assert len(set(every)) == len(every)
    assert all(sum(lengths[i] for i in batch) <= 10 for batch in flat(found))


def test_a_data_set_that_makes_whole_batches_is_shared_batch_by_batch() -> None:
    found = parts(lambda: DataLoader(Numbers(7), batch_size=None), 3, training=False)
    assert found == [[0, 3, 6], [1, 4], [2, 5]]
    shuffled = parts(lambda: DataLoader(Numbers(6), batch_size=None, shuffle=True), 2)
    assert sorted(flat(shuffled)) == list(range(6))
