"""Loaders of anybody's on two ranks: what each rank sees, epoch by epoch."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import Ranks
from tests.training import guest_loaders

pytestmark = pytest.mark.distributed


def flat(*parts: Any) -> list[float]:
    return list(chain.from_iterable(chain.from_iterable(parts)))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_ranks_share_each_epoch_and_each_epoch_is_another(ranks: Callable[[int], Ranks], workers: int) -> None:
    a, b = ranks(2).run(guest_loaders.trained, "one", 2, workers)
    assert a["error"] == b["error"] == []
    for epoch in range(2):
        assert sorted(flat(a["trained"][epoch], b["trained"][epoch])) == [float(i) for i in range(26)]
        assert sorted(flat(a["validated"][epoch], b["validated"][epoch])) == [float(i) for i in range(9)]
        assert [len(batch) for batch in a["trained"][epoch]] == [3, 3, 3, 3, 1]
    assert a["trained"][0] != a["trained"][1]
    assert a["validated"][0] == a["validated"][1]


@pytest.mark.parametrize("kind", ["list", "dict", "combined"])
def test_each_of_several_loaders_is_shared(ranks: Callable[[int], Ranks], kind: str) -> None:
    a, b = ranks(2).run(guest_loaders.trained, kind, 1)
    keys: Any = (0, 1) if kind == "list" else ("a", "b")
    for key, size in zip(keys, (26, 12), strict=True):
        first, second = ([batch[key] for batch in rank["trained"][0]] for rank in (a, b))
        seen = sorted(set(flat(first, second)))
        if kind == "combined" and size == 26:  # which ends with the shorter one
            assert len(seen) == 3 * 3 * 2
        else:
            assert seen == [float(i) for i in range(size)]
        assert not set(flat(first)) & set(flat(second))
    if kind == "list":
        seen = sorted(flat(a["validated"][0], b["validated"][0]))
        assert seen == sorted([float(i) for i in range(5)] + [float(i) for i in range(9)])


@pytest.mark.parametrize("kind", ["stream", "no DataLoader"])
def test_ranks_that_train_on_the_same_batches_end_at_the_second_one(ranks: Callable[[int], Ranks], kind: str) -> None:
    for rank in ranks(2).run(guest_loaders.trained, kind, 1):
        (error,) = rank["error"]
        assert error.startswith("SameBatches: ranks 0 and 1 train on the same batches; let the data set yield every")
        assert len(rank["trained"][0]) == 1


def test_a_stream_that_shares_by_itself_goes_on_and_its_validation_is_told(ranks: Callable[[int], Ranks]) -> None:
    with pytest.raises(RuntimeError, match="ranks 0 and 1 validate on the same batches, which count twice"):
        ranks(2).run(guest_loaders.trained, "shared stream", 1)  # a warning is an error in the ranks


def test_the_same_samples_with_other_noise_are_told(ranks: Callable[[int], Ranks]) -> None:
    with pytest.raises(RuntimeError, match="ranks 0 and 1 train on the same labels"):
        ranks(2).run(guest_loaders.trained, "augmented", 1)


def test_batches_that_are_all_equal_tell_nothing(ranks: Callable[[int], Ranks]) -> None:
    for rank in ranks(2).run(guest_loaders.trained, "constant", 1):
        assert rank["error"] == []


def test_to_overfit_is_to_see_one_batch_again(ranks: Callable[[int], Ranks]) -> None:
    a, b = ranks(2).run(guest_loaders.overfit)
    assert a["trained"][0] == a["trained"][1] == [[0.0, 1.0, 2.0]]
    assert b["trained"][0] == b["trained"][1] == [[3.0, 4.0, 5.0]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_goes_on_after_an_epoch_has_the_order_of_one_that_never_stopped(
    ranks: Callable[[int], Ranks], tmp_path: Path, workers: int
) -> None:
    for rank in ranks(2).run(guest_loaders.resumed, str(tmp_path), workers, 10):
        assert rank["first"] + rank["second"] == rank["whole"]


def test_a_run_that_goes_on_in_the_middle_of_an_epoch_says_what_it_can_not(
    ranks: Callable[[int], Ranks], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="the run goes on after 2 batches of an epoch, and its loader can't"):
        ranks(2).run(guest_loaders.resumed, str(tmp_path), 0, 7)
