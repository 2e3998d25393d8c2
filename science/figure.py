"""Pictures of results, with a panel for each metric of each grid."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from science.plan import Grid, Plan
from science.verdict import Values, interval

_MARKERS = "osD^vP*Xh<"
_INSIDE = 4  # up to this many lines, the legend is inside the panel


def draw(plan: Plan, values: Values, path: Path) -> None:
    """Draw a row of panels for each grid: a metric over the last axis, with a line for each choice of the others."""
    panels = [(name, grid, metric) for name, grid in plan.grids.items() for metric in grid.metrics]
    save(path, len(panels), lambda axes, i: _panel(axes, *panels[i], values), plan.title)


def save(
    path: Path,
    count: int,
    fill: Callable[[Any, int], None],
    title: str,
    size: tuple[float, float] | None = None,
) -> None:
    """Save a figure of `count` panels, up to three per row, each drawn by `fill(axes, number)`; `size` in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=size or (4.8 * max(columns, 1.5), 3.6 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if i < count:
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            fill(axes, i)
        else:
            axes.set_axis_off()
    if title:
        figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def line(
    axes: Any, xs: Sequence[Any], measured: Sequence[Sequence[float]], label: str, number: int, joined: bool = True
) -> None:
    """Draw means with 95 % intervals, connected if they are ordered; missing runs are left out."""
    found = [(x, interval(values)) for x, values in zip(xs, measured, strict=True) if values]
    axes.errorbar(
        [x for x, _ in found],
        [y.mean for _, y in found],
        yerr=[y.half if y.n > 1 else 0 for _, y in found],
        label=label,
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=5,
        linestyle="-" if joined else "",
        capsize=3,
    )


def _panel(axes: Any, name: str, grid: Grid, metric: str, values: Values) -> None:
    shown = grid.metrics[metric]
    *others, last = grid.axes or {"": {"": []}}
    groups: list[tuple[str, ...]] = [()]
    for axis in others:
        groups = [(*group, choice) for group in groups for choice in grid.axes[axis]]
    choices = list(grid.axes[last]) if grid.axes else []
    numeric = last in grid.log
    xs = [float(choice) for choice in choices] if numeric else list(range(len(choices) or 1))
    for number, group in enumerate(groups):
        cells = ["/".join((name, *group, choice)) for choice in choices] or [name]
        measured = [[shown.scale * value for value in values(cell, metric).values()] for cell in cells]
        line(axes, xs, measured, " ".join(group), number, joined=all(map(_is_number, choices)))
    if numeric:
        axes.set_xscale("log")
    axes.set_xticks(xs, choices or [""], rotation=20 if max(map(len, choices or [""])) > 6 else 0)
    axes.minorticks_off()
    axes.set(xlabel=last, ylabel=textwrap.fill(shown.title, 36), title=textwrap.fill(grid.title, 44))
    if metric in grid.log:
        axes.set_yscale("log")
    if others:
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(groups) > _INSIDE else {}
        axes.legend(title=", ".join(others), fontsize="small", frameon=False, **beside)


def _is_number(choice: str) -> bool:
    try:
        float(choice)
    except ValueError:
        return False
    return True
