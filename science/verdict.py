"""Whether an inequality holds, by the 95 % interval of its difference over seeds."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from scipy.stats import t

from science.plan import Claim, Side

Verdict = Literal["holds", "does not hold", "undecided", "not run yet"]
Values = Callable[[str, str], Mapping[int, float]]  # from (cell, metric) to the values by seed
_CONFIDENCE = 0.95


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


class Judgement(NamedTuple):
    """A claim with its measured difference, left - right, and the verdict."""

    claim: Claim
    difference: Interval
    verdict: Verdict


def interval(values: Sequence[float]) -> Interval:
    """Student's t interval of a mean: mean ± t(0.975, n - 1)·s / sqrt(n), infinite for a single value.

    NaN where a value isn't finite, or where there is none.
    """
    n = len(values)
    if not n or not all(math.isfinite(value) for value in values):
        return Interval(math.nan, math.nan, n)
    mean = statistics.fmean(values)
    if n == 1:
        return Interval(mean, math.inf, n)
    half = float(t.ppf((1 + _CONFIDENCE) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, half, n)


def judge(claim: Claim, values: Values) -> Judgement:
    """Compare both sides seed by seed: the same seed has the same data and, for one architecture, the same weights.

    "holds" when the whole 95 % interval of the difference is where the claim says, "does not hold" when the whole of it
    is elsewhere, "undecided" when the interval has parts of both.
    """
    left = _side(claim.left, values)
    if isinstance(claim.right, Side):
        right = _side(claim.right, values)
        differences = [left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())]
    else:
        differences = [left[seed] - claim.right for seed in sorted(left)]
    difference = interval(differences)
    return Judgement(claim, difference, _verdict(claim, difference) if differences else "not run yet")


def overall(judgements: Sequence[Judgement]) -> str:
    """One line for all of a result's claims."""
    verdicts = [judgement.verdict for judgement in judgements]
    if len(set(verdicts)) == 1:
        return verdicts[0]
    undecided = verdicts.count("undecided")
    return f"{verdicts.count('holds')} of {len(verdicts)} hold" + (f", {undecided} undecided" if undecided else "")


def _side(side: Side, values: Values) -> dict[int, float]:
    return {seed: side.times * value for seed, value in values(side.cell, side.metric).items()}


def _verdict(claim: Claim, difference: Interval) -> Verdict:
    low, high = difference.low, difference.high
    if math.isnan(low):
        return "undecided"
    if claim.relation == ">":
        inside, outside = low > claim.margin, high <= claim.margin
    elif claim.relation == "<":
        inside, outside = high < -claim.margin, low >= -claim.margin
    else:
        inside = -claim.margin < low and high < claim.margin
        outside = high <= -claim.margin or low >= claim.margin
    return "holds" if inside else "does not hold" if outside else "undecided"
