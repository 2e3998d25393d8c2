"""Draws docs/images/dashboard.png: python docs/images/dashboard.py <run folder> <run folder>.

The sections and panels are those of the view that `syncbn dashboard` makes, and the values those that the runs logged.
It isn't W&B's screen, which needs a server: W&B draws the panels in its own style, and fills the grey ones with images.
The runs in the README's picture:

    syncbn train model=resnet18 model.width=8 callbacks=[default,norm_monitor] trainer.max_epochs=8 \
        norm=batch,batch_renorm run_id=dashboard -m
"""

import re
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from syncbn.cli.dashboard import workspace
from syncbn.run.comparison import Finished, compared, find_runs
from syncbn.run.curves import COLOURS

PICTURE = Path(__file__).with_suffix(".png")
COLUMNS = 5


def main(folders: list[str]) -> None:
    """Draw the view of some runs."""
    runs = find_runs(map(Path, folders))
    view = workspace("entity", "project", "syncbn")
    figure = Figure(figsize=(12, 2.0 * len(view.sections) + 0.5), layout="constrained", facecolor="#f5f5f7")
    for part, section in zip(figure.subfigures(len(view.sections), 1), view.sections, strict=True):
        part.suptitle(section.name, x=0.01, ha="left", fontweight="bold", fontsize="medium")
        part.set_facecolor("#f5f5f7")
        for axes, panel in zip(part.subplots(1, COLUMNS), [*section.panels, *[None] * COLUMNS], strict=False):
            draw(axes, panel, runs)
    key(figure.subfigs[0], runs)
    figure.savefig(PICTURE, dpi=110)


def key(part: Any, runs: list[Finished]) -> None:
    """Name the runs in their colours, beside a section's title."""
    for number, label in enumerate(labels(runs)):
        place = {"x": 0.1 + 0.1 * number, "y": 0.98, "va": "top", "transform": part.transSubfigure}
        part.text(s=label, color=COLOURS[number], fontweight="bold", fontsize="small", **place)


def labels(runs: list[Finished]) -> list[str]:
    """What distinguishes each run."""
    comparison = compared(runs, [runs[0].metrics[0]], average=False)
    return [comparison.label(group) for group in comparison.groups]


def draw(axes: Any, panel: Any, runs: list[Finished]) -> None:
    """Draw a panel by its kind; None is an empty place."""
    kind = type(panel).__name__
    if panel is None:
        axes.set_axis_off()
        return
    axes.set_title(getattr(panel, "title", None) or kind, fontsize="small")
    axes.tick_params(labelsize="x-small")
    axes.spines[["top", "right"]].set_visible(False)
    if kind == "LinePlot":
        lines(axes, panel, runs)
    elif kind == "ScalarChart":
        bars(axes, panel, runs)
    else:
        axes.set(xticks=[], yticks=[], facecolor="#e4e4e8")
        axes.text(0.5, 0.5, text(panel, runs), ha="center", va="center", fontsize="x-small", transform=axes.transAxes)


def lines(axes: Any, panel: Any, runs: list[Finished]) -> None:
    """Metrics of each run over optimizer steps: the first solid, the second dashed, those of a pattern thin."""
    if panel.y and len(panel.y) > 1:
        for style, name in zip(("-", "--"), panel.y, strict=False):
            axes.plot([], [], color="#555555", linewidth=1.4, linestyle=style, label=name)
        axes.legend(frameon=False, fontsize="x-small", handlelength=1.6)
    for colour, run in zip(COLOURS, runs, strict=False):
        named = [str(metric) for metric in panel.y or []]
        logged = dict.fromkeys(name for row in run.rows for name, value in row.items() if value)
        found = [name for name in logged if panel.metric_regex and re.fullmatch(panel.metric_regex, name)]
        for number, name in enumerate(named or found):
            rows = [row for row in run.rows if row.get(name)]
            width, style = (1.4, "--" if number else "-") if named else (0.6, "-")
            x, y = [float(row["step"]) for row in rows], [float(row[name]) for row in rows]
            axes.plot(x, y, color=colour, linewidth=width, linestyle=style)
    axes.set_xlabel("step", fontsize="x-small")


def bars(axes: Any, panel: Any, runs: list[Finished]) -> None:
    """The last value of each run, named by what distinguishes it."""
    comparison = compared(runs, [str(panel.metric)], average=False)
    for number, group in enumerate(comparison.groups):
        found = group.final(comparison.metrics[0])
        if found is not None:
            axes.barh(number, found.mean, color=COLOURS[number])
            axes.text(0, number, f" {comparison.label(group)}  {found.mean:.4f}", va="center", fontsize="x-small")
    axes.set(yticks=[])
    axes.invert_yaxis()


def text(panel: Any, runs: list[Finished]) -> str:
    """What a panel shows that isn't drawn here."""
    if keys := getattr(panel, "media_keys", None):
        return f"images of {', '.join(keys)}"
    return "\n".join(f"{run.name}: {label}" for run, label in zip(runs, labels(runs), strict=True))


if __name__ == "__main__":
    main(sys.argv[1:])
