"""Samples of all ranks together, for any data size, batch, world and epoch."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbn.data import ClassShardSampler, GlobalBatchSampler


@st.composite
def samplers(draw: st.DrawFn) -> list[GlobalBatchSampler]:
    """The samplers of all ranks of one run."""
    world = draw(st.integers(1, 4))
    batch = draw(st.integers(1, 9))
    samples = draw(st.integers(batch * world, 120))
    shuffle, seed = draw(st.booleans()), draw(st.integers(0, 3))
    return [GlobalBatchSampler(samples, batch, rank, world, shuffle, seed) for rank in range(world)]


@given(samplers(), st.integers(0, 5))
def test_every_sample_once_over_all_ranks(ranks: list[GlobalBatchSampler], epoch: int) -> None:
    for sampler in ranks:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in ranks]

    seen = chain.from_iterable(chain.from_iterable(batches))

    assert sorted(seen) == list(range(ranks[0].num_samples))
    assert {len(of_rank) for of_rank in batches} == {len(ranks[0])}
    for parts in zip(*batches, strict=True):
        lengths = [len(part) for part in parts]
        assert max(lengths) - min(lengths) <= 1


@given(samplers(), st.integers(0, 5))
def test_the_global_batches_are_those_of_one_process(ranks: list[GlobalBatchSampler], epoch: int) -> None:
    first = ranks[0]
    single = GlobalBatchSampler(first.num_samples, first.global_batch_size, shuffle=first.shuffle, seed=first.seed)
    for sampler in [single, *ranks]:
        sampler.set_epoch(epoch)

    joined = [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)]

    assert joined == list(single)


@given(samplers())
def test_drop_last_leaves_full_batches(ranks: list[GlobalBatchSampler]) -> None:
    for sampler in ranks:
        sampler.drop_last = True
        full = sampler.global_batch_size // sampler.world_size
        assert [len(batch) for batch in sampler] == [full] * (sampler.num_samples // sampler.global_batch_size)


def test_the_last_slices_may_be_empty() -> None:
    last = [list(GlobalBatchSampler(9, batch_size=2, rank=rank, world_size=4))[-1] for rank in range(4)]
    assert sorted(map(len, last)) == [0, 0, 0, 1]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = GlobalBatchSampler(50, 8, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"world_size": 0}, "world_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, "rank must be from 0 to 1, got 2"),
        ({"batch_size": 6, "world_size": 2}, r"is 12 samples, more than the 10 there are; allowed: batch_size <= 5"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GlobalBatchSampler(**{"num_samples": 10, "batch_size": 2, **arguments})


@given(st.integers(1, 4), st.integers(1, 6), st.booleans(), st.integers(0, 3))
def test_class_shards_hold_each_sample_once_and_no_foreign_class(
    world: int, batch: int, drop_last: bool, epoch: int
) -> None:
    classes = np.random.default_rng(0).integers(0, 5, size=100)
    ranks = [ClassShardSampler(classes, batch, rank, world, True, 1, drop_last) for rank in range(world)]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in ranks]

    assert {len(of_rank) for of_rank in batches} == {len(ranks[0])}
    for rank, of_rank in enumerate(batches):
        own = list(chain.from_iterable(of_rank))
        assert set(classes[own]) <= set(range(rank, 5, world))
        assert len(own) == len(set(own))
        sizes = {len(indices) for indices in of_rank}
        assert max(sizes) <= batch
        assert sizes == {batch} if drop_last else max(sizes) - min(sizes) <= 1
    if not drop_last:
        seen = chain.from_iterable(chain.from_iterable(batches))
        assert sorted(seen) == list(range(100))


def test_more_ranks_than_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gives rank 2 of 3 0 samples, .* as there are classes \(2\)"):
        ClassShardSampler(np.arange(30) % 2, batch_size=1, world_size=3)
