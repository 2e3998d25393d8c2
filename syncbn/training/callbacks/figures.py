"""Figures of a run: each function draws one file from plain data."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

TRAIN, VALIDATION, TEST = "#4477aa", "#ee6677", "#228833"  # Paul Tol's "bright", safe for colour-blind readers

Series = list[tuple[int, float]]


def read_metrics(path: Path) -> dict[str, Series]:
    """Read metric -> [(step, value), ...] from a metrics.csv; steps repeated by a resumed run have the last value."""
    series: dict[str, dict[int, float]] = defaultdict(dict)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            step = int(row["step"])
            for name, value in row.items():
                if name not in ("step", "epoch") and value:
                    series[name][step] = float(value)
    return {name: sorted(values.items()) for name, values in series.items()}


def draw_loss(metrics: dict[str, Series], path: Path) -> None:
    """Draw training and validation loss over optimizer steps, on a logarithmic axis if their range is large."""
    figure, axes = _axes()
    _curves(axes, metrics, "loss", scale=1.0, unit="")
    values = [value for name in ("train/loss", "val/loss") for _, value in metrics.get(name, []) if value > 0]
    if values and max(values) > 3 * min(values):
        _log_scale(axes)
    axes.set(title="Cross-entropy: lower is better", ylabel="nats per sample")
    _save(figure, path)


def draw_accuracy(metrics: dict[str, Series], path: Path) -> None:
    """Draw training and validation accuracy over optimizer steps, and the test accuracy, if any, as a line."""
    figure, axes = _axes()
    _curves(axes, metrics, "acc", scale=100.0, unit=" %")
    axes.set(title="Accuracy", ylabel="right answers (%)")
    _save(figure, path)


def draw_confusion_matrix(counts: "Tensor", names: Sequence[str], path: Path) -> None:
    """Draw counts (classes, classes), rows true and columns predicted; colour is the share of the true class."""
    figure, axes = _axes(size=(6.4, 5.6))
    shares = counts.float() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=0 if max(map(len, names)) < 4 else 90)
    axes.set_yticks(ticks, names)
    if len(names) <= 20:  # more would be too small to read
        for row in ticks:
            for column in ticks:
                if count := int(counts[row, column]):
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    right, total = int(counts.diagonal().sum()), int(counts.sum())
    title = f"Test samples by class: {right} of {total} right ({100 * right / max(total, 1):.2f} %)"
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.85)
    _save(figure, path)


def draw_norm_statistics(rows: Iterable[dict[str, str]], path: Path) -> None:
    """Draw each norm layer's running mean and variance, averaged over channels, over optimizer steps."""
    import matplotlib as mpl

    layers: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        layers[row["layer"]].append(row)
    figure, (left, right) = _axes(columns=2, size=(11, 4.6 + 0.12 * max(0, len(layers) - 24)))
    colours = mpl.colormaps["viridis"].resampled(max(2, len(layers)))
    for i, (layer, points) in enumerate(layers.items()):
        steps = [int(point["step"]) for point in points]
        # The standard deviation over channels: their mean is always near 0, since signs cancel.
        left.plot(steps, [float(p["mean_std"]) for p in points], color=colours(i), linewidth=1.3, label=layer)
        right.plot(steps, [float(p["var_mean"]) for p in points], color=colours(i), linewidth=1.3, label=layer)
    left.set(title="Running mean of each norm layer", xlabel="optimizer step", ylabel="deviation over channels")
    right.set(title="Running variance of each norm layer", xlabel="optimizer step", ylabel="mean over channels")
    _log_scale(right)
    right.legend(
        title="layer, input to output",
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        fontsize=7,
        title_fontsize=8,
        ncols=math.ceil(len(layers) / 32),
        frameon=False,
    )
    _save(figure, path)


def _curves(axes: "Axes", metrics: dict[str, Series], name: str, scale: float, unit: str) -> None:
    for stage, label, colour in (("train", "training", TRAIN), ("val", "validation", VALIDATION)):
        if points := metrics.get(f"{stage}/{name}"):
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) < 40 else None
            axes.plot(steps, [scale * v for v in values], color=colour, marker=marker, markersize=3, label=label)
    if points := metrics.get(f"test/{name}"):
        step, value = points[-1]
        label = f"test, {scale * value:.4g}{unit}"
        axes.plot([step], [scale * value], "*", color=TEST, markersize=12, label=label, zorder=3)
    axes.set_xlabel("optimizer step")
    axes.legend(frameon=False)


def _log_scale(axes: "Axes") -> None:
    """Set a logarithmic axis with plain numbers: 0.5, 1, 2, 5 instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _axes(columns: int = 1, size: tuple[float, float] = (7, 4.4)) -> tuple["Figure", Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A Figure without pyplot needs no display and doesn't affect the user's open figures.
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    for one in axes if columns > 1 else [axes]:
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
