"""Page of a result: the claim, the measurements, and the verdict."""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from science import figure
from science.history import UNVERSIONED
from science.plan import Claim, Grid, Metric, Plan, Scale, Side
from science.records import Records
from science.runs import picture_of
from science.verdict import Interval, Judgement, Values, interval, judge, overall

_RULE = (
    "The inequalities and their margins stand in `science/plans/{name}.yaml`{since}. Each is judged by a paired, "
    "two-sided t-test over seeds; p is corrected for the {count} inequalities of this page by Holm's method, and "
    "decides where it is below 0.05. The difference is given with its own 95 % interval. The effect is its distance "
    "from the margin in standard deviations of the difference over seeds, positive on the claimed side."
)
_SMOKE = (
    "**The smoke size: it shows that everything runs. Its figures mean nothing, and none of the {count} claims is "
    "judged by them.**"
)


def write(plan: Plan, records: Records, folder: Path, scale: Scale = "small") -> Path:
    """Write `<name>.md` and `<name>.png` beside the records `<name>.csv`, and return the page."""
    figure.draw(plan, records.values, folder / f"{plan.name}.png")
    page = folder / f"{plan.name}.md"
    page.write_text(text(plan, records, scale))
    return page


def text(plan: Plan, records: Records, scale: Scale = "small") -> str:
    """Format the page, with the pictures that measures saved beside the records."""
    smoke = scale == "smoke"
    judgements = [] if smoke else judge(plan.claims, records.values)
    setting = plan.full if scale == "full" else plan.setting
    parts = [
        f"# {plan.title}",
        _SMOKE.format(count=len(plan.claims)) if smoke else "",
        f"**Claim.** {plan.claim.strip()}",
        f"**Source.** {plan.source.strip()}",
        f"**Published.** {plan.figure.strip()}",
        f"**{'At full size' if scale == 'full' else 'Here'}.** {setting.strip()}",
        "" if smoke else f"**Verdict: {overall(judgements)}.**",
        "" if smoke else _claims(judgements, plan.metrics()),
        "" if smoke else _rule(plan, records),
        f"**Looked at before.** {plan.pilots.strip()}" if plan.pilots else "",
        f"**Read after the runs.** {plan.reading.strip()}" if plan.reading and not smoke else "",
        f"![{plan.title}]({plan.name}.png)",
        *(_table(name, grid, records.values) for name, grid in plan.grids.items()),
        *_pictures(plan, records.path.parent),
        f"Mean ± half of the 95 % interval. All runs: [{plan.name}.csv]({plan.name}.csv).",
        f"**What differs from the source.** {plan.differs.strip()}",
        _how(plan, records, scale),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rule(plan: Plan, records: Records) -> str:
    """Explain the test, and name the commit that held the claims when the first run began."""
    commits = sorted({row.commit for row in records.rows if row.commit not in ("", UNVERSIONED)})
    since = f" since commit {', '.join(commits)}, before the runs began" if commits else ", written before the runs"
    return _RULE.format(name=plan.name, since=since, count=len(plan.claims))


def shown(found: Interval, metric: Metric, signed: bool = False) -> str:
    """Format an interval for a table."""
    sign = "+" if signed else ""
    mean = f"{metric.scale * found.mean:{sign}.{metric.digits}f}"
    return mean if found.n < 2 else f"{mean} ± {abs(metric.scale) * found.half:.{metric.digits}f}"


def shown_ratio(found: Interval) -> str:
    """Format an interval of log ratios as a factor."""
    mean = f"× {math.exp(found.mean):.2f}"
    return mean if found.n < 2 else f"{mean} ({math.exp(found.low):.2f} to {math.exp(found.high):.2f})"


def _claims(judgements: Sequence[Judgement], metrics: dict[str, Metric]) -> str:
    rows = [
        [
            found.claim.text,
            inequality(found.claim, metrics[found.claim.left.metric]),
            measured(found, metrics[found.claim.left.metric]),
            f"{found.effect.size:+.1f}" if found.difference.n > 1 else "",
            ("< 0.001" if found.p < 0.001 else f"{found.p:.3f}") if found.difference.n > 1 else "",
            str(found.difference.n),
            f"**{found.verdict}**",
        ]
        for found in judgements
    ]
    return _markdown(["claim", "inequality", "difference or ratio", "effect", "p", "n", ""], rows)


def measured(found: Judgement, metric: Metric) -> str:
    """Format a claim's difference or ratio with its interval."""
    if not found.difference.n:
        return ""
    ratio = found.claim.scale == "ratio"
    return shown_ratio(found.difference) if ratio else shown(found.difference, metric, signed=True)


def inequality(claim: Claim, metric: Metric) -> str:
    """Format a claim in symbols."""
    left, right = _side(claim.left), claim.right
    other = _side(right) if isinstance(right, Side) else f"{metric.scale * right:g}"
    if claim.scale == "ratio":
        margin = f"{100 * claim.margin:g} %"
        beyond = f" by {margin}" if claim.margin else ""
    else:
        margin = f"{metric.scale * claim.margin:g}"
        beyond = f" {'+' if claim.relation == '>' else '-'} {margin}" if claim.margin else ""
    if claim.relation == "within":
        return f"{left} within {margin} of {other}"
    return f"{left} {claim.relation} {other}{beyond}"


def _side(side: Side) -> str:
    times = f"{side.times:g} × " if side.times != 1 else ""
    cell = side.cell if side.minus is None else f"({side.cell} - {side.minus})"
    return f"{times}{cell} ({side.metric})"


def _table(name: str, grid: Grid, values: Values) -> str:
    """With one axis, a table of choices by metrics; with more, a table per metric with the last axis across."""
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
    return [f"{name}, the first seed:\n\n![{name}]({file.name})" for name, file in files.items() if file.is_file()]


def _how(plan: Plan, records: Records, scale: Scale) -> str:
    runs = len(records.rows)
    clock, cpu = (sum(getattr(row, name) for row in records.rows) / 60 for name in ("seconds", "cpu_seconds"))
    seeds = sorted({row.seed for row in records.rows})
    made = "; ".join(sorted({row.made for row in records.rows}))
    command = f"python scripts/reproduce.py {plan.name}" + ("" if scale == "small" else f" scale={scale}")
    which = f" ({seeds[0]} to {seeds[-1]})" if seeds else ""
    budget = f" Budget: {plan.budget_minutes:g} minutes on two idle cores." if scale == "small" else ""
    return (
        f"**How.** `{command}`: {runs} runs over {len(seeds)} seeds{which}, {plan.ranks_of(scale)} process(es) each, "
        f"without any choice made on test data.{budget} These runs took {clock:.0f} minutes by the clock, {cpu:.0f} of "
        f"a core's time in each process; the difference is waiting, for other ranks or on a busy machine. {made}."
    )
