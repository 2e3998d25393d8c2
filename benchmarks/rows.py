"""A line of the results: what was measured, beside what, and the target."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Ours beside a peer or a floor, both measured in the same run.

    Attributes:
        area: the table that the line is part of.
        what: what of ours was measured.
        beside: the peer or the floor.
        unit: of `ours` and `theirs`: ms, MB, ...
        ours: median of the repeats.
        theirs: median of the repeats.
        ratio: ours to theirs.
        low: first quartile of the ratios of single repeats.
        high: third quartile.
        limit: what the ratio may be; None where there is no target.
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
        """Whether the ratio keeps to its limit; empty where there is none."""
        if self.limit is None:
            return ""
        return "met" if self.ratio <= self.limit else "MISSED"


def shown(ratio: float) -> str:
    """A ratio, to two decimals, or to two digits where there are fewer."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def paired(
    area: str,
    what: str,
    beside: str,
    unit: str,
    pairs: Sequence[tuple[float, float]],
    limit: float | None = None,
) -> Row:
    """The line of repeats in which ours and theirs were measured in turns: the median of their ratios."""
    ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4, method="inclusive")
    return Row(area, what, beside, unit, ours, theirs, middle, low, high, limit)


def markdown(rows: Sequence[Row]) -> str:
    """Tables of rows, one for each area."""
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
    """The line of a figure that doesn't vary, such as a number of bytes."""
    ratio = ours / theirs
    return Row(area, what, beside, unit, ours, theirs, ratio, ratio, ratio, limit)
