"""Summary docs/results/README.md: all claims in one table and one picture."""

import math
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from science import figure
from science.page import measured
from science.plan import Plan, available_results, load_plan
from science.records import Records
from science.verdict import Judgement, Verdict, judge, overall

_HEAD = """\
# What the literature claims, and what happens here

Each page is written by a command from runs on two CPU cores, and code judges inequalities that were written down before
the runs. They show directions, not the sources' figures: the networks are small, and so is the data.

    python scripts/reproduce.py <name>
    python scripts/reproduce.py summary

The first goes on where it was stopped and writes a page, a picture and a CSV file here. With `smoke=true` it takes
seconds, writes into `outputs`, and judges nothing. With `scale=full`, for machines with GPUs, it trains what the source
trained, where data and code allow, and writes into `full`. The second command writes this page. `make results` does all
of it.

![all claims: how far each is from its margin](README.png)

The picture has a line for each claim: the distance of what was measured from what was claimed, in standard deviations
over seeds, with its 95 % interval, on a scale that is linear up to 1. What holds is on the right, what doesn't on the
left, what is open across the line in the middle, or too near to it for the number of claims on its page.
"""
_FOOT = """\
Beside these, written by hand: [fine-tuning, adaptation and recalibration](finetuning.md), and
[two images a rank, on scenes](scenes.md).
"""
# Okabe & Ito's bluish green and vermilion, and different signs: told apart without colours, too.
_SIGNS: dict[Verdict, tuple[str, str]] = {
    "holds": ("#009E73", "o"),
    "does not hold": ("#D55E00", "X"),
    "undecided": ("#767676", "D"),
}
_FURTHEST = 30.0  # limit of the picture, in standard deviations
_WIDTH = 64  # characters of a claim in a line of its label
_SECOND_LINE = 0.85  # height of a label's further line, in first lines


class Result(NamedTuple):
    """A plan with records, and its claims judged."""

    plan: Plan
    judgements: list[Judgement]


def write(folder: Path) -> Path:
    """Write `README.md` and `README.png` from the records in `folder`."""
    results = [_result(name, folder) for name in available_results()]
    run = [result for result in results if any(j.difference.n for j in result.judgements)]
    if run:
        height = 0.19 * _places(run)[-1] + 1
        figure.save(folder / "README.png", 1, lambda axes, _: _forest(axes, run), "", size=(11, height))
    rows = ["| result | claim | published | verdict | measured |", "|---|---|---|---|---|"]
    rows += [_row(result, ran=result in run) for result in results]
    page = folder / "README.md"
    page.write_text("\n".join([_HEAD if run else _HEAD.partition("![")[0], *rows, "", _FOOT]))
    return page


def _result(name: str, folder: Path) -> Result:
    plan = load_plan(name)
    records = Records(folder / f"{name}.csv", plan.metrics())
    return Result(plan, judge(plan.claims, records.values))


def _row(result: Result, ran: bool) -> str:
    plan, judgements = result
    if not ran:
        return f"| {plan.name} | {_unwrapped(plan.claim)} | {_unwrapped(plan.figure)} | not run yet | |"
    link = f"[{plan.name}]({plan.name}.md)"
    metrics = plan.metrics()
    found = [f"{j.claim.text}: {measured(j, metrics[j.claim.left.metric])}, {j.verdict}" for j in judgements]
    said = f"{_unwrapped(plan.claim)} | {_unwrapped(plan.figure)}"
    return f"| {link} | {said} | {overall(judgements)} | {'; '.join(found)} |"


def _forest(axes: Any, results: list[Result]) -> None:
    """Draw a forest plot: a line for each claim under its page's name, from the top down."""
    from matplotlib.lines import Line2D

    axes.set_xscale("symlog", linthresh=1, linscale=1.2)
    labels, places = _labels(results), _places(results)
    judgements = [found for result in results for found in (None, *result.judgements)]
    for found, place in zip(judgements, places, strict=True):
        if found is not None:
            _claim(axes, found, place)
    axes.set_yticks(places, labels, linespacing=1.1)
    for label, found in zip(axes.get_yticklabels(), judgements, strict=True):
        label.set_fontweight("normal" if found else "bold")
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_ylim(places[-1] + 0.8, -0.8)
    axes.set_xlim(-_FURTHEST, _FURTHEST)
    ticks = [-10, -3, -1, 0, 1, 3, 10]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("← doesn't hold          distance from the margin, standard deviations over seeds          holds →")
    points = [
        Line2D([], [], color=color, marker=sign, linestyle="", label=name) for name, (color, sign) in _SIGNS.items()
    ]
    axes.legend(handles=points, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)


def _labels(results: list[Result]) -> list[str]:
    """Names of pages, each followed by its claims, whole."""
    return [
        label
        for plan, judgements in results
        for label in (plan.name, *(textwrap.fill(_unwrapped(found.claim.text), _WIDTH) for found in judgements))
    ]


def _places(results: list[Result]) -> list[float]:
    """Heights of the labels, from the top down."""
    taken = [1 + _SECOND_LINE * label.count("\n") for label in _labels(results)]
    return [sum(taken[:number]) + (taken[number] - 1) / 2 for number in range(len(taken))]


def _claim(axes: Any, found: Judgement, line: float) -> None:
    size, low, high = (max(-_FURTHEST, min(_FURTHEST, x)) for x in found.effect)
    if math.isnan(found.effect.size):
        return
    color, sign = _SIGNS[found.verdict]
    axes.plot([low, high], [line, line], color=color, linewidth=1.5)
    marker = sign if abs(found.effect.size) <= _FURTHEST else ">" if size > 0 else "<"
    axes.plot([size], [line], color=color, marker=marker, markersize=4, clip_on=False)


def _unwrapped(text: str) -> str:
    return " ".join(text.split())
