"""Verdicts on inequalities by paired t-tests over seeds."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from scipy import stats

from science.plan import Claim, Side

Verdict = Literal["holds", "does not hold", "undecided", "not run yet"]
Values = Callable[[str, str], Mapping[int, float]]  # maps (cell, metric) to values by seed
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean over n runs and its 95 % interval, mean ± half."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


class Effect(NamedTuple):
    """Distance of a claim's mean difference from its margin, in standard deviations of the difference over seeds.

    Positive on the claimed side. `low` and `high` bound the mean's 95 % interval, on the same scale.
    """

    size: float
    low: float
    high: float


class Judgement(NamedTuple):
    """A claim with its measurement and verdict.

    Attributes:
        claim: the inequality.
        difference: left - right, of logarithms on the scale "ratio".
        effect: standardized distance from the margin.
        p: p-value of the two-sided paired t-test, corrected for the number of claims.
        verdict: verdict by `p`.
    """

    claim: Claim
    difference: Interval
    effect: Effect
    p: float
    verdict: Verdict


def interval(values: Sequence[float]) -> Interval:
    """Student's t interval of a mean: mean ± t(0.975, n - 1)·s / sqrt(n), infinite for a single value.

    NaN if there are no values or one isn't finite.
    """
    n = len(values)
    if not n or not all(math.isfinite(value) for value in values):
        return Interval(math.nan, math.nan, n)
    mean = statistics.fmean(values)
    if n == 1:
        return Interval(mean, math.inf, n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, half, n)


def judge(claims: Sequence[Claim], values: Values) -> list[Judgement]:
    """Compare both sides of each claim by seed. A seed fixes the data and, for one architecture, the initial weights.

    A claim's differences are compared with its margin by two one-sided t-tests, one for either side; "within" has two
    for each (TOST). Twice the smaller p is the two-sided p, corrected by Holm's method for all claims. Below 0.05 the
    verdict is "holds" or "does not hold", by the side, else "undecided".

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Statistics 6, 1979; Schuirmann, A
    Comparison of the Two One-Sided Tests Procedure, J. Pharmacokinetics and Biopharmaceutics 15, 1987.
    """
    every = [_differences(claim, values) for claim in claims]
    tests = [_tests(claim, found) for claim, found in zip(claims, every, strict=True)]
    corrected = holm([min(1.0, 2 * min(test)) for test in tests])
    return [
        Judgement(claim, interval(found), effect(claim, found), p, _verdict(found, test, p))
        for claim, found, test, p in zip(claims, every, tests, corrected, strict=True)
    ]


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's corrected p-values: the i-th smallest of m times m - i + 1, and no less than those before it."""
    corrected, largest = [1.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected


def effect(claim: Claim, differences: Sequence[float]) -> Effect:
    """Compute the `Effect`: infinite if all seeds have the same difference, NaN for fewer than two seeds."""
    found = interval(differences)
    if found.n < 2 or math.isnan(found.mean):
        return Effect(math.nan, math.nan, math.nan)
    margin, deviation = _margin(claim), statistics.stdev(differences)
    nearest = 0.0 if found.low < 0 < found.high else min(abs(found.low), abs(found.high))
    distances = {
        ">": (found.mean - margin, found.low - margin, found.high - margin),
        "<": (-found.mean - margin, -found.high - margin, -found.low - margin),
        "within": (margin - abs(found.mean), margin - max(abs(found.low), abs(found.high)), margin - nearest),
    }[claim.relation]
    if _constant(differences):
        return Effect(*(math.copysign(math.inf, distance) if distance else -math.inf for distance in distances))
    return Effect(*(distance / deviation for distance in distances))


def overall(judgements: Sequence[Judgement]) -> str:
    """Summarize all claims of a result in one line."""
    verdicts = [judgement.verdict for judgement in judgements]
    if len(set(verdicts)) == 1:
        return verdicts[0]
    undecided = verdicts.count("undecided")
    return f"{verdicts.count('holds')} of {len(verdicts)} hold" + (f", {undecided} undecided" if undecided else "")


def _differences(claim: Claim, values: Values) -> list[float]:
    left = _side(claim.left, values)
    right = _side(claim.right, values) if isinstance(claim.right, Side) else dict.fromkeys(left, claim.right)
    seeds = sorted(left.keys() & right.keys())
    if claim.scale == "ratio":
        return [_log(left[seed]) - _log(right[seed]) for seed in seeds]
    return [left[seed] - right[seed] for seed in seeds]


def _side(side: Side, values: Values) -> dict[int, float]:
    found = values(side.cell, side.metric)
    if side.minus is not None:
        other = values(side.minus, side.metric)
        found = {seed: found[seed] - other[seed] for seed in found.keys() & other.keys()}
    return {seed: side.times * value for seed, value in found.items()}


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def _margin(claim: Claim) -> float:
    return math.log1p(claim.margin) if claim.scale == "ratio" else claim.margin


def _tests(claim: Claim, differences: Sequence[float]) -> tuple[float, float]:
    """One-sided p-values for the claim and for its opposite; 1 if neither can be tested."""
    if len(differences) < 2 or not all(math.isfinite(difference) for difference in differences):
        return 1.0, 1.0
    margin = _margin(claim)
    if _constant(differences):  # the t statistic would divide by zero
        mean = statistics.fmean(differences)
        held = {">": mean > margin, "<": mean < -margin, "within": abs(mean) < margin}[claim.relation]
        return (0.0, 1.0) if held else (1.0, 0.0)
    if claim.relation == ">":
        return _above(differences, margin), _below(differences, margin)
    if claim.relation == "<":
        return _below(differences, -margin), _above(differences, -margin)
    inside = max(_above(differences, -margin), _below(differences, margin))
    return inside, min(_below(differences, -margin), _above(differences, margin))


def _constant(differences: Sequence[float]) -> bool:
    return max(differences) - min(differences) <= 1e-12 * max(map(abs, differences))


def _above(differences: Sequence[float], bound: float) -> float:
    return float(stats.ttest_1samp(differences, bound, alternative="greater").pvalue)


def _below(differences: Sequence[float], bound: float) -> float:
    return float(stats.ttest_1samp(differences, bound, alternative="less").pvalue)


def _verdict(differences: Sequence[float], test: tuple[float, float], p: float) -> Verdict:
    if not differences:
        return "not run yet"
    if p >= 1 - CONFIDENCE:
        return "undecided"
    return "holds" if test[0] < test[1] else "does not hold"
