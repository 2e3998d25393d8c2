"""docs/results/README.md: all claims in one table and one picture."""

from pathlib import Path
from typing import Any

from science import figure
from science.page import shown
from science.plan import Plan, available_results, load_plan
from science.records import Records
from science.verdict import interval, judge, overall

_HEAD = """\
# What the literature claims, and what happens here

Each page is written by a command, from runs of seconds on data that comes with scikit-learn: at least five seeds, and
inequalities that were written down before the runs and that code judges. They show directions, not the sources'
figures: the networks are small, and so is the data.

    python scripts/reproduce.py <name>
    python scripts/reproduce.py summary

The first goes on where it was stopped and writes a page, a picture and a CSV file here; with `smoke=true` it takes
seconds and writes into `outputs`. The second writes this page. `make results` does all of it.

![all results](README.png)
"""
_FOOT = """\
Beside these, written by hand: [fine-tuning, adaptation and recalibration](finetuning.md), and
[two images a rank, on scenes](scenes.md).
"""


def write(folder: Path) -> Path:
    """Write `README.md` and `README.png` from the records in `folder`."""
    plans = [load_plan(name) for name in available_results()]
    opened = [(plan, Records(folder / f"{plan.name}.csv", plan.metrics())) for plan in plans]
    run = [(plan, records) for plan, records in opened if records.rows]
    if run:
        figure.save(
            folder / "README.png",
            len(run),
            lambda axes, i: _panel(axes, *run[i]),
            "Mean and 95 % interval over seeds; a panel for each claim",
        )
    lines = ["| result | claim | published | here | verdict |", "|---|---|---|---|---|"]
    lines += [_row(plan, records) for plan, records in opened]
    page = folder / "README.md"
    page.write_text("\n".join([_HEAD if run else _HEAD.rpartition("!")[0], *lines, "", _FOOT]))
    return page


def _row(plan: Plan, records: Records) -> str:
    if not records.rows:
        return f"| {plan.name} | {_unwrapped(plan.claim)} | {_unwrapped(plan.figure)} | | not run yet |"
    verdict = overall([judge(claim, records.values) for claim in plan.claims])
    link = f"[{plan.name}]({plan.name}.md)"
    return f"| {link} | {_unwrapped(plan.claim)} | {_unwrapped(plan.figure)} | {_measured(plan, records)} | {verdict} |"


def _measured(plan: Plan, records: Records) -> str:
    metric = plan.metrics()[plan.headline.metric]
    series = []
    for name, cells in plan.headline.series.items():
        found = [list(records.values(cell, plan.headline.metric).values()) for cell in cells]
        series.append(f"{name} {' → '.join(shown(interval(values), metric) for values in found if values)}")
    return f"{metric.title}: {'; '.join(series)}"


def _panel(axes: Any, plan: Plan, records: Records) -> None:
    metric = plan.metrics()[plan.headline.metric]
    series = plan.headline.series
    values = {
        cell: [metric.scale * value for value in records.values(cell, plan.headline.metric).values()]
        for cells in series.values()
        for cell in cells
    }
    ticks = plan.headline.ticks or list(series)
    if plan.headline.ticks:
        for number, (name, cells) in enumerate(series.items()):
            figure.line(axes, range(len(cells)), [values[cell] for cell in cells], name, number)
        axes.legend(fontsize="small", frameon=False)
    else:
        for number, (name, (cell,)) in enumerate(series.items()):
            figure.line(axes, [number], [values[cell]], name, number)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set(ylabel=metric.title, title=plan.title)
    axes.margins(x=0.15)


def _unwrapped(text: str) -> str:
    return " ".join(text.split())
