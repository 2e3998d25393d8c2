"""The one-shot exchange: exact sums in rank order, over any groups, with messages in flight and late ranks."""

from collections.abc import Callable

import pytest
import torch

from tests.norm.core import shared
from tests.norm.core.shared import expected_sum
from tests.ranks import Ranks

pytestmark = pytest.mark.distributed

# Sizes of messages: none, few, a full slot of float64 and of float32, one more, and several slots.
LENGTHS = [0, 1, 129, 4097, 8191, 8192, 8193, 16_384, 16_385, 100_003]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("world_size", [2, 4])
def test_sums_have_the_bits_of_a_sum_in_rank_order(
    ranks: Callable[[int], Ranks], world_size: int, dtype: torch.dtype
) -> None:
    expected = [expected_sum(list(range(world_size)), i, length, dtype) for i, length in enumerate(LENGTHS)]
    for answers in ranks(world_size).run(shared.sums, LENGTHS, dtype):
        for answer, sum_ in zip(answers, expected, strict=True):
            assert torch.equal(answer, sum_), "of as many numbers as given, whatever the rank"


def test_any_layout_is_summed_in_place(ranks: Callable[[int], Ranks]) -> None:
    grid = torch.arange(12, dtype=torch.float64).view(3, 4) * 2 + 1
    expected = {
        "transposed": grid.T,
        "strided": grid[:, ::2],
        "0-d": torch.tensor(5.0),
        "empty": torch.empty(0, 3),
        "parameter": grid,
        "negative view": -(grid + 2),
    }
    for answers in ranks(2).run(shared.layouts):
        assert answers.keys() == expected.keys()
        for name, answer in answers.items():
            assert torch.equal(answer, expected[name]), name


@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("slow_rank", [0, 3])
def test_messages_in_flight_with_a_rank_that_is_late(
    ranks: Callable[[int], Ranks], in_flight: int, slow_rank: int
) -> None:
    assert ranks(4).run(shared.late_and_in_flight, in_flight, 150, slow_rank, 0) == [0] * 4


def test_groups_that_sum_at_once(ranks: Callable[[int], Ranks]) -> None:
    assert ranks(4).run(shared.groups_at_once, 100) == [0] * 4


def test_groups_that_are_destroyed_and_made_again_leave_nothing(ranks: Callable[[int], Ranks]) -> None:
    assert ranks(2).run(shared.made_and_destroyed, 12) == [(0, 0, 0)] * 2


def test_messages_of_different_lengths_are_refused_on_all_ranks(ranks: Callable[[int], Ranks]) -> None:
    for text in ranks(2).run(shared.different_lengths):
        assert "rank 0 3 of float64; rank 1 4 of float64" in text


def seen_by_profiler() -> list[str]:
    _, exchange = shared.new_one_shot()
    buffer = torch.ones(3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        exchange.sum(buffer)
        exchange.send(buffer).wait()
    return [event.name for event in profile.events() if event.name.startswith("syncbn")]


def test_profilers_see_messages(ranks: Callable[[int], Ranks]) -> None:
    assert ranks(2).run(seen_by_profiler) == [["syncbn::one_shot"] * 3] * 2  # a sum; a message; a wait for it
