"""Policies on random networks are right or refuse in one line. On 500 networks: `python -m tests.networks`."""

import pytest

from tests.networks.command import examine, reproduction

AT_ONCE = 20


@pytest.mark.parametrize("first", range(1000, 1000 + 5 * AT_ONCE, AT_ONCE))
def test_fuse_is_right_and_folds_what_can_be_folded(first: int) -> None:
    (tally,) = examine(["fuse"], AT_ONCE, first, shrinking=2)
    counts = tally.count()
    assert counts["right"] == AT_ONCE, reproduction(tally)
    assert counts["done"] >= 0.8 * counts["possible"] > 0


@pytest.mark.parametrize("first", range(2000, 2000 + 5 * AT_ONCE, AT_ONCE))
def test_prune_is_right_or_refused(first: int) -> None:
    (tally,) = examine(["prune"], AT_ONCE, first, shrinking=2)
    assert not tally.failed, reproduction(tally)
    assert tally.count()["right"] >= 0.7 * AT_ONCE  # the others have no channel that could go


@pytest.mark.parametrize("first", range(3000, 3000 + 3 * AT_ONCE, AT_ONCE))
def test_overlap_has_the_same_bits(first: int) -> None:
    (tally,) = examine(["overlap"], AT_ONCE, first, shrinking=2)
    counts = tally.count()
    assert not tally.failed, reproduction(tally)
    assert counts["right"] >= 0.85 * AT_ONCE  # the others can't be converted
    assert counts["done"] >= 0.2 * counts["possible"] > 0  # of the messages forward and backward


@pytest.mark.parametrize("policy", ["sync", "frozen", "cross_iteration", "group", "recalibrate", "inspect", "freeze"])
def test_conversions_and_statistics_are_right_or_refused(policy: str) -> None:
    (tally,) = examine([policy], AT_ONCE, 4000, shrinking=2)
    assert not tally.failed, reproduction(tally)
    assert tally.count()["right"] >= 0.7 * AT_ONCE  # the others are wrapped or scripted
