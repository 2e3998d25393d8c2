"""A result's page: the claim, what was measured, and what code says of the two."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from science import figure
from science.plan import Grid, Metric, Plan, Side
from science.records import Records
from science.runs import picture_of
from science.verdict import Interval, Judgement, Values, interval, judge, overall

_RULE = (
    "The inequalities and their margins stand in `science/plans/{name}.yaml`, written before the runs. A difference is "
    "taken seed by seed. An inequality holds where the whole 95 % interval of the mean difference (Student's t) is on "
    "the claimed side, and is undecided where the interval is on both. Nothing corrects for the number of claims."
)


def write(plan: Plan, records: Records, folder: Path, smoke: bool = False) -> Path:
    """Write `<name>.md` and `<name>.png` beside the records `<name>.csv`, and return the page."""
    figure.draw(plan, records.values, folder / f"{plan.name}.png")
    page = folder / f"{plan.name}.md"
    page.write_text(text(plan, records, smoke))
    return page


def text(plan: Plan, records: Records, smoke: bool = False) -> str:
    """The page, with the pictures that measures have left beside the records."""
    judgements = [judge(claim, records.values) for claim in plan.claims]
    command = f"python scripts/reproduce.py {plan.name}" + (" smoke=true" if smoke else "")
    parts = [
        f"# {plan.title}",
        "**The smoke size: it shows that everything runs, and its figures mean nothing.**" if smoke else "",
        f"**Claim.** {plan.claim.strip()}",
        f"**Source.** {plan.source.strip()}",
        f"**Published.** {plan.figure.strip()}",
        f"**Here.** {plan.setting.strip()}",
        f"**Verdict: {overall(judgements)}.**",
        _claims(judgements, plan.metrics()),
        _RULE.format(name=plan.name),
        f"**Read after the runs.** {plan.reading.strip()}" if plan.reading else "",
        f"![{plan.title}]({plan.name}.png)",
        *(_table(name, grid, records.values) for name, grid in plan.grids.items()),
        *_pictures(plan, records.path.parent),
        f"Mean ± half of the 95 % interval. All runs: [{plan.name}.csv]({plan.name}.csv).",
        f"**What differs from the source.** {plan.differs.strip()}",
        _how(plan, records, command),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def shown(found: Interval, metric: Metric, signed: bool = False) -> str:
    """An interval as a table shows it."""
    sign = "+" if signed else ""
    mean = f"{metric.scale * found.mean:{sign}.{metric.digits}f}"
    return mean if found.n < 2 else f"{mean} ± {abs(metric.scale) * found.half:.{metric.digits}f}"


def _claims(judgements: Sequence[Judgement], metrics: dict[str, Metric]) -> str:
    rows = []
    for claim, difference, verdict in judgements:
        metric = metrics[claim.left.metric]
        right = _side(claim.right) if isinstance(claim.right, Side) else f"{metric.scale * claim.right:g}"
        margin = f"{metric.scale * claim.margin:g}"
        inequality = f"{_side(claim.left)} {claim.relation} {right}"
        if claim.relation == "within":
            inequality = f"{_side(claim.left)} within {margin} of {right}"
        elif claim.margin:
            inequality += f" {'+' if claim.relation == '>' else '-'} {margin}"
        measured = shown(difference, metric, signed=True) if difference.n else ""
        rows.append([claim.text, inequality, measured, str(difference.n), f"**{verdict}**"])
    return _markdown(["claim", "inequality", "difference", "n", ""], rows)


def _side(side: Side) -> str:
    times = f"{side.times:g} × " if side.times != 1 else ""
    return f"{times}{side.cell} ({side.metric})"


def _table(name: str, grid: Grid, values: Values) -> str:
    """With one axis, a row a choice and a column a metric; with more, a table a metric with the last axis across."""
    if len(grid.axes) < 2:
        choices = [choice for axis in grid.axes.values() for choice in axis] or [""]
        names = [f"{name}/{choice}" if choice else name for choice in choices]
        header = [" ".join(grid.axes), *(metric.title for metric in grid.metrics.values())]
        found = [[_entry(cell, key, metric, values) for key, metric in grid.metrics.items()] for cell in names]
        rows = [[choice, *entries] for choice, entries in zip(choices, found, strict=True)]
        return f"## {grid.title}\n\n{_markdown(header, rows)}"
    *others, last = grid.axes
    tables = []
    for key, metric in grid.metrics.items():
        rows = []
        for group in product(*(grid.axes[axis] for axis in others)):
            cells = ["/".join((name, *group, choice)) for choice in grid.axes[last]]
            rows.append([" ".join(group), *(_entry(cell, key, metric, values) for cell in cells)])
        tables.append(f"{metric.title}, by {last}:\n\n{_markdown([', '.join(others), *grid.axes[last]], rows)}")
    return "\n\n".join([f"## {grid.title}", *tables])


def _entry(cell: str, key: str, metric: Metric, values: Values) -> str:
    found = list(values(cell, key).values())
    return shown(interval(found), metric) if found else ""


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _pictures(plan: Plan, folder: Path) -> list[str]:
    files = {cell.name: picture_of(plan, cell, folder) for cell in plan.cells()}
    return [f"{name}, seed 0:\n\n![{name}]({file.name})" for name, file in files.items() if file.is_file()]


def _how(plan: Plan, records: Records, command: str) -> str:
    runs = len(records.rows)
    clock, cpu = (sum(getattr(row, name) for row in records.rows) / 60 for name in ("seconds", "cpu_seconds"))
    seeds = len({row.seed for row in records.rows})
    made = "; ".join(sorted({row.made for row in records.rows}))
    return (
        f"**How.** `{command}`: {runs} runs over {seeds} seeds, {plan.ranks} process(es) each, without any choice made "
        f"on test data. Budget: {plan.budget_minutes:g} minutes on two idle cores. These runs took {clock:.0f} minutes "
        f"by the clock, {cpu:.0f} of a core's time in each process; the difference is waiting, for other ranks or on a "
        f"busy machine. {made}."
    )
