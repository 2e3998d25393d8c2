"""Curves of runs as a figure for a page or a paper: labels beside the lines, colours for the colour-blind, too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from syncbn.run.comparison import Comparison

# Okabe & Ito 2008, without its yellow, which is too light for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
FIGURES = (".png", ".pdf", ".svg")
_DASHES = ("-", "--", ":", "-.")
_LINE = 0.062  # height of a label, as a part of the axes', where they are as high as usual
_HEIGHT, _TALLEST = 4.0, 100.0  # inches


def draw_curves(comparison: Comparison, path: Path) -> None:
    """Draw each metric over epochs, a panel for each: means of groups, and their 95 % intervals as bands."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(comparison.metrics)
    height = min(max(_HEIGHT, 1.15 * _HEIGHT * _LINE * len(comparison.groups)), _TALLEST)  # so that all labels fit
    figure = Figure(figsize=(5.5 * count, height), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric in zip(figure.subplots(1, count, squeeze=False).flat, comparison.metrics, strict=True):
        _panel(axes, comparison, metric, _LINE * _HEIGHT / height)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _panel(axes: Any, comparison: Comparison, metric: str, line: float) -> None:
    from matplotlib.ticker import MaxNLocator

    ends = []
    for number, group in enumerate(comparison.groups):
        curve = group.curve(metric)
        if not curve:
            continue
        colour = COLOURS[number % len(COLOURS)]
        epochs, means = list(curve), [found.mean for found in curve.values()]
        dashes = _DASHES[number // len(COLOURS) % len(_DASHES)]
        axes.plot(epochs, means, color=colour, linestyle=dashes, marker="." if len(epochs) < 30 else "")
        halves = [found.half or 0 for found in curve.values()]
        if any(halves):
            low, high = ([mean + side * half for mean, half in zip(means, halves, strict=True)] for side in (-1, 1))
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        ends.append((epochs[-1], means[-1], colour, comparison.label(group)))
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    label_ends(axes, ends, line=line)


def label_ends(
    axes: Any, ends: Sequence[tuple[float, float, str, str]], heading: str = "", line: float = _LINE
) -> None:
    """Write labels beside the axes, each level with the end of its line where the others leave room.

    Args:
        axes: with all lines drawn.
        ends: x, y, colour and label of each line's end.
        heading: written above the labels.
        line: height of a label, as a part of the axes'.
    """
    axes.set_ylim(axes.get_ylim())  # what follows moves nothing
    to_part = axes.transData + axes.transAxes.inverted()
    heights = spread([to_part.transform((x, y))[1] for x, y, _, _ in ends], line)
    for (x, y, colour, label), height in zip(ends, heights, strict=True):
        axes.annotate(
            label,
            xy=(x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=colour,
            fontsize="small",
            va="center",
            parse_math=False,  # a name with dollar signs is no formula
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.4, "linewidth": 0.6},
        )
    if heading and ends:
        above = max(heights) + line
        axes.text(1.03, above, heading, transform=axes.transAxes, fontsize="small", style="italic", va="center")


def spread(places: Sequence[float], least: float) -> list[float]:
    """Move places apart until neighbours are `least` apart, as little as it takes, in the order that they have."""
    order = sorted(range(len(places)), key=places.__getitem__)
    blocks: list[tuple[float, int]] = []  # the lowest place of neighbours that touch, and how many they are
    for number in order:
        start, size = places[number], 1
        while blocks and blocks[-1][0] + blocks[-1][1] * least > start:
            below, below_size = blocks.pop()
            centre = (below + (below_size - 1) * least / 2) * below_size + (start + (size - 1) * least / 2) * size
            size += below_size
            start = centre / size - (size - 1) * least / 2
        blocks.append((start, size))
    moved = [start + place * least for start, size in blocks for place in range(size)]
    return [moved[order.index(number)] for number in range(len(places))]
