"""Intervals against scipy's, and verdicts where they can be read off."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from science.plan import Claim, Side
from science.verdict import Judgement, interval, judge, overall

SAMPLES = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=12)


@given(SAMPLES)
def test_the_interval_is_students(values: list[float]) -> None:
    found = interval(values)
    if len(set(values)) == 1:
        assert found.half == 0
    else:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
        assert found.low == pytest.approx(low, abs=1e-9)
        assert found.high == pytest.approx(high, abs=1e-9)


def test_few_and_broken_values_have_no_interval() -> None:
    assert interval([2.0]).half == math.inf
    assert math.isnan(interval([]).mean)
    assert math.isnan(interval([1.0, math.nan]).low)


def judged(left: list[float], relation: str, right: list[float] | float, margin: float = 0.0) -> Judgement:
    values = {"a": dict(enumerate(left)), "b": dict(enumerate(right)) if isinstance(right, list) else {}}
    other = Side("b", "m") if isinstance(right, list) else right
    claim = Claim("", Side("a", "m"), relation, other, margin)  # type: ignore[arg-type]
    return judge(claim, lambda cell, metric: values[cell])


CLEAR, NOISY = [1.0, 1.1, 0.9, 1.0, 1.05], [3.0, -2.0, 2.0, -1.0, 1.0]
ZERO = [0.0] * 5


@pytest.mark.parametrize(
    ("left", "relation", "right", "margin", "verdict"),
    [
        (CLEAR, ">", ZERO, 0.0, "holds"),
        (CLEAR, ">", ZERO, 0.5, "holds"),
        (CLEAR, ">", ZERO, 1.0, "undecided"),
        (CLEAR, ">", ZERO, 2.0, "does not hold"),
        (CLEAR, "<", ZERO, 0.0, "does not hold"),
        (ZERO, "<", CLEAR, 0.5, "holds"),
        (ZERO, "<", CLEAR, 2.0, "does not hold"),
        (NOISY, ">", ZERO, 0.0, "undecided"),
        (CLEAR, "within", CLEAR, 0.1, "holds"),
        (CLEAR, "within", ZERO, 0.5, "does not hold"),
        (NOISY, "within", ZERO, 0.5, "undecided"),
        (CLEAR, ">", 0.5, 0.0, "holds"),
        (CLEAR, "<", 0.5, 0.0, "does not hold"),
        (ZERO, ">", ZERO, 0.0, "does not hold"),
        ([1.0, math.nan], ">", [0.0, 0.0], 0.0, "undecided"),
        ([1.0], ">", [0.0], 0.0, "undecided"),
        ([], ">", ZERO, 0.0, "not run yet"),
    ],
)
def test_the_verdict_is_where_the_interval_is(
    left: list[float], relation: str, right: list[float] | float, margin: float, verdict: str
) -> None:
    assert judged(left, relation, right, margin).verdict == verdict


def test_sides_are_paired_by_seed() -> None:
    """Seeds differ much and sides little: unpaired, nothing could be said."""
    left, right = [10.0, 20.0, 30.0, 40.0, 50.0], [9.0, 18.9, 29.1, 39.0, 49.0]
    found = judged(left, ">", right)
    assert found.verdict == "holds"
    assert found.difference == interval([1.0, 20 - 18.9, 30 - 29.1, 1.0, 1.0])
    assert judged(left[:3], ">", right).difference.n == 3


def test_a_side_may_be_multiplied() -> None:
    claim = Claim("", Side("a", "m"), "<", Side("a", "m", times=0.5))
    found = judge(claim, lambda cell, metric: dict(enumerate([2.0, 2.0, 2.2])))
    assert found.difference.mean == pytest.approx(1.0333, abs=1e-3)


def test_all_claims_together() -> None:
    holds, fails, open_ = judged(CLEAR, ">", ZERO), judged(CLEAR, "<", ZERO), judged(NOISY, ">", ZERO)
    assert overall([holds, holds]) == "holds"
    assert overall([fails, fails]) == "does not hold"
    assert overall([holds, fails]) == "1 of 2 hold"
    assert overall([holds, fails, open_]) == "1 of 3 hold, 1 undecided"
