"""Pictures of results, with a panel for each metric of each grid."""

import textwrap
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogFormatter

from science.plan import Grid, Metric, Plan
from science.verdict import Values, interval
from syncbn.run.curves import COLOURS, label_ends

_MARKERS = "osD^vP*Xh<"
_COLUMNS = 3
_LONG = 4  # from this many choices on both axes, or more metrics than this in one unit, a heat map is easier to read
_SHARE = 100  # scale of a metric that is a share: its intervals end at 0 and 100 %
_APART = 0.08  # between groups at one choice, so that their intervals don't cover each other


def draw(plan: Plan, values: Values, path: Path) -> None:
    """Draw a panel for each metric of each grid.

    A panel shows the metric over the last axis, with a line for each choice of the others; over two long axes without
    numbers, a heat map. Many metrics of one unit share a heat map. A grid without axes is a single panel with a point
    for each of its metrics.
    """
    panels: list[Callable[[Any], None]] = []
    wide: list[int] = []
    title = plan.title
    for name, grid in plan.grids.items():
        if not grid.axes and len(grid.metrics) > 1:
            panels.append(partial(_points, name=name, grid=grid, values=values))
        elif _is_wide(grid):
            wide.append(len(panels))
            panels.append(partial(_metrics_map, name=name, grid=grid, values=values))
        else:
            fill = _heat_map if _is_table(grid) else _panel
            for metric in grid.metrics:
                named = _titles(plan, grid, grid.metrics[metric])
                panels.append(partial(fill, name=name, grid=grid, metric=metric, values=values, titles=named))
            if len(plan.grids) == 1 and len(grid.metrics) > 1:
                title = f"{plan.title}: {grid.title[0].lower()}{grid.title[1:]}"
    tables = [grid for grid in plan.grids.values() if _is_table(grid)]
    size = (9.0, 5.5) if tables and len(panels) == 1 else None
    save(path, len(panels), lambda axes, i: panels[i](axes), title, size, wide)


def save(
    path: Path,
    count: int,
    fill: Callable[[Any, int], None],
    title: str,
    size: tuple[float, float] | None = None,
    wide: Collection[int] = (),
) -> None:
    """Save a figure of `count` panels, each drawn by `fill(axes, number)`.

    Up to three stand in a row; those in `wide` have a row each. `size` is in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = _COLUMNS if wide else 2 if count == 4 else min(count, _COLUMNS)
    places: list[tuple[int, int | slice]] = []
    row, column = 0, 0
    for number in range(count):
        if column == columns or (number in wide and column):
            row, column = row + 1, 0
        places.append((row, slice(None) if number in wide else column))
        column = columns if number in wide else column + 1
    figure = Figure(figsize=size or (4.8 * max(columns, 1.5), 3.6 * (row + 1) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(row + 1, columns)
    for number, place in enumerate(places):
        axes = figure.add_subplot(grid[place])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        fill(axes, number)
    if title:
        figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def line(
    axes: Any,
    xs: Sequence[float],
    measured: Sequence[Sequence[float]],
    number: int,
    *,
    joined: bool = True,
    share: bool = False,
) -> tuple[float, float] | None:
    """Draw means with 95 % intervals, connected if they are ordered; missing runs are left out.

    Args:
        axes: where to.
        xs: places.
        measured: values at each place.
        number: of the line; it decides on colour and marker.
        joined: whether to connect the means.
        share: values are between 0 and 100 %, and so is what is drawn of their intervals.

    Returns:
        The last point, None without any.
    """
    found = [(x, interval(values)) for x, values in zip(xs, measured, strict=True) if values]
    halves = [y.half if y.n > 1 else 0.0 for _, y in found]
    below = [min(half, max(y.mean, 0.0)) if share else half for (_, y), half in zip(found, halves, strict=True)]
    above = [min(half, max(100 - y.mean, 0.0)) if share else half for (_, y), half in zip(found, halves, strict=True)]
    axes.errorbar(
        [x for x, _ in found],
        [y.mean for _, y in found],
        yerr=[below, above],
        color=COLOURS[number % len(COLOURS)],
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=5,
        linestyle="-" if joined else "",
        capsize=3,
    )
    return (found[-1][0], found[-1][1].mean) if found else None


def _titles(plan: Plan, grid: Grid, shown: Metric) -> tuple[str, str]:
    """Title of a panel, and label of its values.

    A grid of one panel has its own title. Of several, each is named after its metric, and after its grid if there are
    others.
    """
    if len(grid.metrics) == 1:
        return grid.title, shown.title
    return shown.title if len(plan.grids) == 1 else f"{grid.title}:\n{shown.title}", ""


def _panel(axes: Any, name: str, grid: Grid, metric: str, values: Values, titles: tuple[str, str]) -> None:
    shown = grid.metrics[metric]
    *others, last = grid.axes or {"": {"": []}}
    groups: list[tuple[str, ...]] = [()]
    for axis in others:
        groups = [(*group, choice) for group in groups for choice in grid.axes[axis]]
    choices = list(grid.axes[last]) if grid.axes else []
    numeric, joined = last in grid.log, all(map(_is_number, choices))
    xs = [float(choice) for choice in choices] if numeric else list(range(len(choices) or 1))
    ends = []
    for number, group in enumerate(groups):
        cells = ["/".join((name, *group, choice)) for choice in choices] or [name]
        measured = [[shown.scale * value for value in values(cell, metric).values()] for cell in cells]
        moved = 0 if joined else _APART * (number - (len(groups) - 1) / 2)
        end = line(axes, [x + moved for x in xs], measured, number, joined=joined, share=shown.scale == _SHARE)
        if end is not None:
            ends.append((*end, COLOURS[number % len(COLOURS)], " ".join(group)))
    if numeric:
        axes.set_xscale("log")
    elif not joined:
        axes.set_xlim(-0.5, len(xs) - 0.5)
    _name_ticks(axes, xs, choices or [""])
    axes.minorticks_off()
    title, label = titles
    axes.set(xlabel=last, ylabel=textwrap.fill(label, 36), title=_filled(title))
    if metric in grid.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())  # 20 instead of 2 × 10¹
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    if others:
        label_ends(axes, ends, ", ".join(others))


def _points(axes: Any, name: str, grid: Grid, values: Values) -> None:
    """Draw a point with its interval for each metric."""
    for place, (metric, shown) in enumerate(grid.metrics.items()):
        line(axes, [place], [[shown.scale * value for value in values(name, metric).values()]], 0)
    titles = [shown.title for shown in grid.metrics.values()]
    _name_ticks(axes, range(len(titles)), titles)
    axes.set_xlim(-0.5, len(titles) - 0.5)
    axes.set(title=_filled(grid.title))


def _filled(title: str) -> str:
    """Break the lines of a title where they are too long for a panel."""
    return "\n".join(textwrap.fill(part, 44) for part in title.splitlines())


def _name_ticks(axes: Any, places: Sequence[float], names: Sequence[str]) -> None:
    """Name places of the horizontal axis, by slanted words if they are long."""
    slanted = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 6 else {}
    axes.set_xticks(places, names, **slanted)


def _is_table(grid: Grid) -> bool:
    """Whether a grid has two axes, both of many choices and the last without numbers."""
    sizes = [len(choices) for choices in grid.axes.values()]
    return len(sizes) == 2 and min(sizes) >= _LONG and not all(map(_is_number, list(grid.axes.values())[-1]))


def _is_wide(grid: Grid) -> bool:
    """Whether a grid has one axis without numbers, and many metrics in one unit."""
    if len(grid.axes) != 1 or len(grid.metrics) <= _LONG or grid.log:
        return False
    (choices,) = grid.axes.values()
    units = {(shown.scale, shown.digits) for shown in grid.metrics.values()}
    return len(units) == 1 and not all(map(_is_number, choices))


def _heat_map(axes: Any, name: str, grid: Grid, metric: str, values: Values, titles: tuple[str, str]) -> None:
    shown = grid.metrics[metric]
    (rows, across), (columns, along) = grid.axes.items()
    means = [[_mean(values, f"{name}/{row}/{column}", metric, shown) for column in along] for row in across]
    _table(axes, means, shown.digits, list(across), list(along))
    title, label = titles
    axes.set(xlabel=columns, ylabel=rows, title=_filled(f"{title}:\n{label}" if label else title))


def _metrics_map(axes: Any, name: str, grid: Grid, values: Values) -> None:
    """Draw the means of all metrics, a column for each."""
    ((rows, across),) = grid.axes.items()
    means = [[_mean(values, f"{name}/{row}", *metric) for metric in grid.metrics.items()] for row in across]
    shown = list(grid.metrics.values())
    _table(axes, means, shown[0].digits, list(across), [one.title for one in shown])
    axes.set(ylabel=rows, title=grid.title)


def _mean(values: Values, cell: str, metric: str, shown: Metric) -> float:
    found = list(values(cell, metric).values())
    return shown.scale * sum(found) / len(found) if found else float("nan")


def _table(axes: Any, means: list[list[float]], digits: int, rows: list[str], columns: list[str]) -> None:
    """Draw numbers as a table whose cells are coloured, light for low and dark for high."""
    image = axes.imshow(means, aspect="auto", cmap="Blues")
    low, high = image.get_clim()
    for y, row in enumerate(means):
        for x, mean in enumerate(row):
            dark = mean > (low + high) / 2
            axes.text(x, y, f"{mean:.{digits}f}", ha="center", va="center", color="white" if dark else "black")
    _name_ticks(axes, range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _is_number(choice: str) -> bool:
    try:
        float(choice)
    except ValueError:
        return False
    return True
