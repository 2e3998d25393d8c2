"""Anybody's DataLoader shared among ranks: every sample once, and what one process would see in one batch."""

import random
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise, zip_longest
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from syncbn.data.shared import SharedBatches, shared


class Numbers(Dataset[Tensor]):
    """The numbers from 0 to size - 1."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(index)


def parts(make: Any, world_size: int, epoch: int = 0, training: bool = True) -> list[list[list[int]]]:
    """The batches of each rank, each of which makes its own loader."""
    found = []
    for rank in range(world_size):
        torch.manual_seed(100 + rank)  # ranks may have drawn unequally often
        random.seed(100 + rank)
        np.random.seed(100 + rank)  # noqa: NPY002
        loader = shared(make(), rank, world_size, seed=3, training=training)
        for one in (loader.batch_sampler, loader.sampler):
            if isinstance(one, SharedBatches):
                one.set_epoch(epoch)
        batches = [batch.tolist() for batch in loader]
        assert len(loader) == len(batches)
        found.append(batches)
    return found


def together(found: list[list[list[int]]]) -> list[list[int]]:
    """The global batches: those of all ranks put together."""
    return [flat(part or [] for part in step) for step in zip_longest(*found)]


def flat(lists: Iterable[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


class Pairs(Sampler[list[int]]):
    """A batch sampler of one's own: pairs of neighbours in a random order."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size // 2

    def __iter__(self) -> Iterator[list[int]]:
        for pair in torch.randperm(len(self)).tolist():
            yield [2 * pair, 2 * pair + 1]


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize(("size", "batch"), [(24, 2), (25, 2), (26, 2), (23, 1), (7, 5), (64, 8)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_in_order_the_ranks_see_the_batches_of_one_process(
    size: int, batch: int, drop_last: bool, world_size: int
) -> None:
    if drop_last and size < batch * world_size:
        return  # told as too few
    found = parts(lambda: DataLoader(Numbers(size), batch, drop_last=drop_last), world_size)
    one = [step.tolist() for step in DataLoader(Numbers(size), batch * world_size, drop_last=drop_last)]
    expected = [step for step in one if len(step) >= world_size]  # a shorter one isn't shared
    assert together(found) == expected
    assert {len(batches) for batches in found} == {len(expected)}
    assert all(abs(len(a) - len(b)) <= 1 for step in zip(*found, strict=True) for a, b in pairwise(step))


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("size", [4, 5, 23, 24, 25])
def test_an_evaluation_sees_every_sample_once(size: int, world_size: int) -> None:
    found = parts(lambda: DataLoader(Numbers(size), 3), world_size, training=False)
    assert sorted(flat(flat(found))) == list(range(size))
    counts = [len(batches) for batches in found]
    assert max(counts) - min(counts) <= 1
    assert min(counts) >= 1


SAMPLERS = {
    "shuffle": lambda: DataLoader(Numbers(24), 3, shuffle=True),
    "shuffle, by place": lambda: DataLoader(Numbers(24), 3, True),
    "its own generator": lambda: DataLoader(Numbers(24), 3, shuffle=True, generator=seeded_by_chance()),
    "random sampler": lambda: DataLoader(Numbers(24), 3, sampler=RandomSampler(Numbers(24))),
    "a random subset": lambda: DataLoader(Numbers(99), 3, sampler=SubsetRandomSampler(range(24))),
    "numpy's numbers": lambda: DataLoader(Numbers(24), 3, sampler=ByNumpy(24)),
    "Python's numbers": lambda: DataLoader(Numbers(24), 3, sampler=ByPython(24)),
    "workers": lambda: DataLoader(Numbers(24), 3, shuffle=True, num_workers=1),
}


def seeded_by_chance() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator


class ByNumpy(Sampler[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(self.size).tolist())  # noqa: NPY002


class ByPython(ByNumpy):
    def __iter__(self) -> Iterator[int]:
        return iter(random.sample(range(self.size), self.size))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_random_order_is_one_for_all_ranks_and_another_each_epoch(kind: str) -> None:
    make = SAMPLERS[kind]
    first, again, second = (parts(make, 2, epoch) for epoch in (0, 0, 1))
    assert sorted(flat(flat(first))) == list(range(24))
    assert first == again
    assert first != second
    assert first[0] != [list(range(i, i + 3)) for i in range(0, 24, 6)]


def test_a_weighted_order_is_one_for_all_ranks() -> None:
    weights = torch.arange(24.0)

    def make() -> DataLoader[Tensor]:
        return DataLoader(Numbers(24), 3, sampler=WeightedRandomSampler(weights.tolist(), 240))

    order = torch.tensor(flat(together(parts(make, 2))))
    assert len(order) == 240
    drawn = torch.bincount(order, minlength=24) / 240
    assert float((drawn - weights / weights.sum()).abs().max()) < 0.05
    assert parts(make, 2) == parts(make, 2)


def test_the_random_numbers_of_a_run_stay_what_they_were() -> None:
    loader = shared(DataLoader(Numbers(24), 3, shuffle=True), 0, 2, seed=3, training=True)
    assert isinstance(loader.batch_sampler, SharedBatches)
    torch.manual_seed(5)
    list(loader.batch_sampler)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert drawn == torch.rand(1)


class Loader(DataLoader[Any]):
    """A subclass with another signature."""

    def __init__(self, images: Tensor, *, of: int, note: str) -> None:
        super().__init__(TensorDataset(images), batch_size=of, shuffle=True, collate_fn=torch.stack)
        self.note = note


def test_all_else_of_a_loader_stays() -> None:
    generator = torch.Generator()
    loader = DataLoader(
        Numbers(24),
        3,
        num_workers=2,
        collate_fn=sum,
        pin_memory=True,
        timeout=7,
        worker_init_fn=print,
        generator=generator,
        prefetch_factor=5,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    made = shared(loader, 1, 2, seed=0, training=True)
    kept = ["dataset", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator"]
    kept += ["prefetch_factor", "persistent_workers", "multiprocessing_context", "batch_size"]
    assert {name: getattr(made, name) for name in kept} == {name: getattr(loader, name) for name in kept}
    assert type(loader.batch_sampler) is BatchSampler
    subclass = Loader(torch.zeros(8, 2), of=2, note="mine")
    made = shared(subclass, 0, 2, seed=0, training=True)
    assert type(made) is Loader
    assert made.note == "mine"
    assert len(made) == 2


def test_persistent_workers_of_the_loader_itself_are_not_the_new_ones() -> None:
    loader = DataLoader(Numbers(8), 2, num_workers=1, persistent_workers=True)
    assert len(list(loader)) == 4
    made = shared(loader, 0, 2, seed=0, training=True)
    assert [batch.tolist() for batch in made] == [[0, 1], [4, 5]]
    assert [batch.tolist() for batch in made] == [[0, 1], [4, 5]]
    assert len(list(loader)) == 4


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(9))


class Ranked(SequentialSampler):
    rank, world_size = 0, 2


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Numbers(8), sampler=DistributedSampler(Numbers(8), 2, 0)),
        DataLoader(Numbers(8), batch_sampler=BatchSampler(DistributedSampler(Numbers(8), 2, 0), 2, True)),
        DataLoader(Numbers(8), sampler=Ranked(Numbers(8))),
        DataLoader(Stream(), 3),
        shared(DataLoader(Numbers(8)), 0, 2, seed=0, training=True),
    ],
)
def test_a_loader_that_shares_by_itself_is_left_alone(loader: DataLoader[Any]) -> None:
    assert shared(loader, 0, 2, seed=0, training=True) is loader


class Endless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (
            DataLoader(Numbers(8), sampler=Endless()),
            "Endless has no length, and can't be shared among 4 ranks: give it",
        ),
        (DataLoader(Numbers(3), 2), "3 samples are too few for 4 ranks, which need 4: use fewer ranks"),
        (
            DataLoader(Numbers(7), 2, drop_last=True),
            "7 samples are too few for 4 ranks with full batches of 2, which need 8",
        ),
        (DataLoader(Numbers(6), batch_sampler=Pairs(6)), "3 batches are too few for 4 ranks, which need 4"),
    ],
)
def test_what_can_not_be_shared_says_why(loader: DataLoader[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shared(loader, 0, 4, seed=0, training=True)


def test_what_is_left_out_is_counted() -> None:
    def left_out(loader: DataLoader[Any], training: bool = True) -> int:
        made: Any = shared(loader, 0, 4, seed=0, training=training)
        return made.batch_sampler.left_out

    assert left_out(DataLoader(Numbers(34), 4)) == 2
    assert left_out(DataLoader(Numbers(36), 4)) == 0
    assert left_out(DataLoader(Numbers(34), 4), training=False) == 0
    assert left_out(DataLoader(Numbers(34), 4, drop_last=True)) == 0  # the user has said so
    assert left_out(DataLoader(Numbers(22), batch_sampler=Pairs(22))) == 3
