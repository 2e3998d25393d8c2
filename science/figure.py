"""Pictures of results, with a panel for each metric of each grid."""

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from science.plan import Grid, Plan
from science.verdict import Values, interval

_MARKERS = "osD^vP*Xh<"
_INSIDE = 4  # up to this many lines, the legend is inside the panel


def draw(plan: Plan, values: Values, path: Path) -> None:
    """Draw a panel for each metric of each grid.

    A panel shows the metric over the last axis, with a line for each choice of the others; over two long axes without
    numbers, a heat map. A grid without axes is a single panel with a point for each of its metrics.
    """
    panels: list[Callable[[Any], None]] = []
    for name, grid in plan.grids.items():
        if not grid.axes and len(grid.metrics) > 1:
            panels.append(partial(_points, name=name, grid=grid, values=values))
            continue
        fill = _heat_map if _is_table(grid) else _panel
        panels += [partial(fill, name=name, grid=grid, metric=metric, values=values) for metric in grid.metrics]
    tables = [grid for grid in plan.grids.values() if _is_table(grid)]
    size = (9.0, 5.5) if tables and len(panels) == 1 else None
    save(path, len(panels), lambda axes, i: panels[i](axes), plan.title, size)


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
    # Panels of one grid are told apart by their metric; a grid of one panel has a title of its own.
    title, label = (shown.title, "") if len(grid.metrics) > 1 else (grid.title, shown.title)
    axes.set(xlabel=last, ylabel=textwrap.fill(label, 36), title=textwrap.fill(title, 44))
    if metric in grid.log:
        axes.set_yscale("log")
    if others:
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(groups) > _INSIDE else {}
        axes.legend(title=", ".join(others), fontsize="small", frameon=False, **beside)


def _points(axes: Any, name: str, grid: Grid, values: Values) -> None:
    """Draw a point with its interval for each metric."""
    axes.set_prop_cycle(color=["tab:blue"])
    for number, (metric, shown) in enumerate(grid.metrics.items()):
        line(axes, [number], [[shown.scale * value for value in values(name, metric).values()]], "", 0)
    titles = [shown.title for shown in grid.metrics.values()]
    axes.set_xticks(range(len(titles)), titles, rotation=20 if max(map(len, titles)) > 6 else 0)
    axes.set_xlim(-0.5, len(titles) - 0.5)
    axes.set(title=textwrap.fill(grid.title, 44))


def _is_table(grid: Grid) -> bool:
    """Whether a grid has two axes, both without numbers and too long for a legend."""
    sizes = [len(choices) for choices in grid.axes.values()]
    return len(sizes) == 2 and min(sizes) > _INSIDE and not all(map(_is_number, list(grid.axes.values())[-1]))


def _heat_map(axes: Any, name: str, grid: Grid, metric: str, values: Values) -> None:
    """Draw the means as a table whose cells are coloured, light for low and dark for high."""
    shown = grid.metrics[metric]
    (rows, across), (columns, along) = grid.axes.items()
    cells = [[list(values(f"{name}/{row}/{column}", metric).values()) for column in along] for row in across]
    means = [[shown.scale * sum(cell) / len(cell) if cell else float("nan") for cell in row] for row in cells]
    image = axes.imshow(means, aspect="auto", cmap="Blues")
    low, high = image.get_clim()
    for y, row in enumerate(means):
        for x, mean in enumerate(row):
            dark = mean > (low + high) / 2
            axes.text(x, y, f"{mean:.{shown.digits}f}", ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(along)), list(along))
    axes.set_yticks(range(len(across)), list(across))
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set(xlabel=columns, ylabel=rows, title=grid.title if len(grid.metrics) == 1 else shown.title)


def _is_number(choice: str) -> bool:
    try:
        float(choice)
    except ValueError:
        return False
    return True
