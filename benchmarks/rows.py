"""Rows of the results: a measurement, its peer, and the target."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A measurement of ours and of a peer or a lower bound, in the same run.

    Attributes:
        area: table of the row.
        what: subject of the measurement.
        beside: peer or lower bound.
        unit: unit of `ours` and `theirs`: ms, MB, ...
        ours: median of the repeats.
        theirs: median of the repeats.
        ratio: ours over theirs.
        low: first quartile of the ratios of single repeats.
        high: third quartile.
        limit: upper limit of the ratio; None without a target.
    """

    area: str
    what: str
    beside: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    limit: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the ratio is within its limit; empty without one."""
        if self.limit is None:
            return ""
        return "met" if self.ratio <= self.limit else "MISSED"


def shown(ratio: float) -> str:
    """Format a ratio with two decimals, or with two significant digits if it is small."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def paired(
    area: str,
    what: str,
    beside: str,
    unit: str,
    pairs: Sequence[tuple[float, float]],
    limit: float | None = None,
) -> Row:
    """Row of repeats in which ours and theirs took turns, with the median of their ratios."""
    ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4, method="inclusive")
    return Row(area, what, beside, unit, ours, theirs, middle, low, high, limit)


def markdown(rows: Sequence[Row]) -> str:
    """Format rows as Markdown tables, one per area."""
    lines: list[str] = []
    for place, row in enumerate(rows):
        if place == 0 or rows[place - 1].area != row.area:
            lines += [f"\n**{row.area[0].upper()}{row.area[1:]}**\n" if row.area else ""]
            lines += ["| ours | beside | ours | theirs | ratio | target | |", "|---|---|--:|--:|--:|--:|---|"]
        spread = f" ({row.low:.2f}–{row.high:.2f})" if row.low != row.high else ""
        target = "" if row.limit is None else f"≤ {row.limit:.3g}"
        lines.append(
            f"| {row.what} | {row.beside} | {row.ours:.4g} {row.unit} | {row.theirs:.4g} {row.unit} | "
            f"{row.ratio:.2f}{spread} | {target} | {row.verdict} |"
        )
    return "\n".join(lines)


def counted(
    area: str, what: str, beside: str, unit: str, ours: float, theirs: float, limit: float | None = None
) -> Row:
    """Row of a figure that doesn't vary, such as a number of bytes."""
    ratio = ours / theirs
    return Row(area, what, beside, unit, ours, theirs, ratio, ratio, ratio, limit)
