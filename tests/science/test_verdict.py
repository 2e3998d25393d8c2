"""Intervals and tests against scipy's, Holm's method against its definition, verdicts in obvious cases."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from science.plan import Claim, Side
from science.verdict import Judgement, effect, holm, interval, judge, overall

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


def judged(
    left: list[float], relation: str, right: list[float] | float, margin: float = 0.0, scale: str = "difference"
) -> Judgement:
    values = {"a": dict(enumerate(left)), "b": dict(enumerate(right)) if isinstance(right, list) else {}}
    other = Side("b", "m") if isinstance(right, list) else right
    claim = Claim("", Side("a", "m"), relation, other, margin, scale)
    (found,) = judge([claim], lambda cell, metric: values[cell])
    return found


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
        (ZERO, "within", CLEAR, 0.5, "does not hold"),
        (NOISY, "within", ZERO, 0.5, "undecided"),
        (CLEAR, ">", 0.5, 0.0, "holds"),
        (CLEAR, "<", 0.5, 0.0, "does not hold"),
        (ZERO, ">", ZERO, 0.0, "does not hold"),
        (ZERO, "within", ZERO, 0.0, "does not hold"),
        (ZERO, "<", 0.1, 0.0, "holds"),
        ([1.0, math.nan], ">", [0.0, 0.0], 0.0, "undecided"),
        ([1.0], ">", [0.0], 0.0, "undecided"),
        ([], ">", ZERO, 0.0, "not run yet"),
    ],
)
def test_the_verdict_is_where_the_interval_is(
    left: list[float], relation: str, right: list[float] | float, margin: float, verdict: str
) -> None:
    assert judged(left, relation, right, margin).verdict == verdict


@given(SAMPLES, st.sampled_from([">", "<", "within"]), st.floats(0, 50).map(lambda x: round(x, 2)))
def test_one_claim_is_decided_exactly_where_its_interval_is_on_one_side(
    values: list[float], relation: str, margin: float
) -> None:
    found = judged(values, relation, [0.0] * len(values), margin)
    low, high = found.difference.low, found.difference.high
    if len(set(values)) == 1 or min(abs(abs(low) - margin), abs(abs(high) - margin)) < 1e-6:
        return
    inside = {">": low > margin, "<": high < -margin, "within": -margin < low and high < margin}[relation]
    outside = {">": high < margin, "<": low > -margin, "within": high < -margin or low > margin}[relation]
    assert found.verdict == ("holds" if inside else "does not hold" if outside else "undecided")
    assert (found.effect.low > 0) == inside
    assert (found.effect.high < 0) == outside


@given(SAMPLES, SAMPLES)
def test_p_is_that_of_scipys_paired_t_test(left: list[float], right: list[float]) -> None:
    n = min(len(left), len(right))
    left, right = left[:n], right[:n]
    differences = np.subtract(left, right)
    if differences.std() < 1e-6:
        return
    assert judged(left, ">", right).p == pytest.approx(min(1, stats.ttest_rel(left, right).pvalue), abs=1e-9)
    within = judged(left, "within", right, margin=5.0)
    lower = stats.ttest_1samp(differences, -5, alternative="greater").pvalue
    upper = stats.ttest_1samp(differences, 5, alternative="less").pvalue
    inside, outside = max(lower, upper), min(1 - lower, 1 - upper)
    assert within.p == pytest.approx(min(1, 2 * min(inside, outside)), abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holms_method_is_the_closed_test_of_bonferronis(ps: list[float]) -> None:
    """By definition: a claim's p is the largest that Bonferroni gives any set of claims that it is in."""
    expected = [0.0] * len(ps)
    for size in range(1, len(ps) + 1):
        for chosen in itertools.combinations(range(len(ps)), size):
            for i in chosen:
                expected[i] = max(expected[i], min(1.0, size * min(ps[j] for j in chosen)))
    assert holm(ps) == pytest.approx(expected)


def test_claims_of_one_page_are_corrected_for_their_number() -> None:
    """A claim that is decided alone is undecided among ten others."""
    values = {"a": dict(enumerate([1.0, 2.0, 3.0, 0.2, 1.5])), "n": dict(enumerate(NOISY)), "z": dict(enumerate(ZERO))}

    def of(cell: str, metric: str) -> dict[int, float]:
        return values[cell]

    claim, other = Claim("", Side("a", "m"), ">", Side("z", "m")), Claim("", Side("n", "m"), ">", Side("z", "m"))
    (alone,) = judge([claim], of)
    among = judge([other] * 9 + [claim], of)[-1]
    assert (alone.verdict, among.verdict) == ("holds", "undecided")
    assert among.p == pytest.approx(10 * alone.p)
    assert among.difference == alone.difference


def test_sides_are_paired_by_seed() -> None:
    """Seeds differ much and sides little: an unpaired test would be undecided."""
    left, right = [10.0, 20.0, 30.0, 40.0, 50.0], [9.0, 18.9, 29.1, 39.0, 49.0]
    found = judged(left, ">", right)
    assert found.verdict == "holds"
    assert found.difference == interval([1.0, 20 - 18.9, 30 - 29.1, 1.0, 1.0])
    assert judged(left[:3], ">", right).difference.n == 3


def test_a_side_may_be_multiplied_and_another_cell_subtracted() -> None:
    values = {"a": [2.0, 2.0, 2.2], "b": [1.0, 1.5, 0.5]}

    def of(cell: str, metric: str) -> dict[int, float]:
        return dict(enumerate(values[cell]))

    (half,) = judge([Claim("", Side("a", "m"), "<", Side("a", "m", times=0.5))], of)
    assert half.difference.mean == pytest.approx(1.0333, abs=1e-3)
    (gain,) = judge([Claim("", Side("a", "m", times=2.0, minus="b"), ">", 0.5)], of)
    assert gain.difference == pytest.approx(interval([2.0 - 0.5, 1.0 - 0.5, 3.4 - 0.5]))


def test_ratios_are_compared_by_their_logarithms() -> None:
    """Runs vary by factors: the mean difference is dominated by the largest run, and undecided."""
    left, right = [1.0, 12.0, 900.0, 3.0, 40.0], [3.0, 30.0, 3000.0, 8.0, 130.0]
    assert judged(left, "<", right).verdict == "undecided"
    found = judged(left, "<", right, scale="ratio")
    assert found.verdict == "holds"
    assert found.difference == pytest.approx(interval([math.log(a / b) for a, b in zip(left, right, strict=True)]))
    assert judged(left, "<", right, 1.0, "ratio").verdict == "holds", "less than half"
    assert judged(left, "<", right, 3.0, "ratio").verdict == "does not hold", "a quarter"
    assert judged(left, "within", right, 3.0, "ratio").verdict == "holds", "within a factor of 4"
    assert judged([1.0, 0.0, 2.0], "<", [2.0, 2.0, 2.0], scale="ratio").verdict == "undecided", "0 has no logarithm"


def test_the_effect_is_the_distance_from_the_margin_in_deviations() -> None:
    differences = [1.0, 2.0, 3.0]  # mean 2, deviation 1
    half = float(stats.t.ppf(0.975, 2)) / math.sqrt(3)

    def found(relation: str, margin: float) -> tuple[float, ...]:
        return tuple(effect(Claim("", Side("a", "m"), relation, 0.0, margin), differences))

    assert found(">", 0.5) == pytest.approx((1.5, 1.5 - half, 1.5 + half))
    assert found("<", 0.5) == pytest.approx((-2.5, -2.5 - half, -2.5 + half))
    assert found("within", 5.0) == pytest.approx((3.0, 3.0 - half, 5.0))  # the interval reaches over 0
    assert effect(Claim("", Side("a", "m"), ">", 0.0, 0.5), [1.0, 1.0]) == (math.inf,) * 3
    assert effect(Claim("", Side("a", "m"), ">", 0.0, 1.0), [1.0, 1.0]) == (-math.inf,) * 3
    assert math.isnan(effect(Claim("", Side("a", "m"), ">", 0.0), [1.0]).size)


def test_all_claims_together() -> None:
    holds, fails, open_ = judged(CLEAR, ">", ZERO), judged(CLEAR, "<", ZERO), judged(NOISY, ">", ZERO)
    assert overall([holds, holds]) == "holds"
    assert overall([fails, fails]) == "does not hold"
    assert overall([holds, fails]) == "1 of 2 hold"
    assert overall([holds, fails, open_]) == "1 of 3 hold, 1 undecided"
