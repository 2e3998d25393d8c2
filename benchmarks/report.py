"""Results in docs/results/performance.csv, and the page and the picture made from them."""

import csv
import dataclasses
import datetime
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import Row, shown

FOLDER = Path(__file__).parent.parent / "docs" / "results"
HEAD = """# Performance

Written by `make bench`, from [performance.csv](performance.csv). Every figure is a ratio to a peer or a floor that was
measured in the same run, in turns: the median of the ratios of single repeats, and beside it their quartiles. The peers
are in [peers.py](../../benchmarks/peers.py), written from their descriptions, and tested in
[test_peers.py](../../tests/benchmarks/test_peers.py). What holds the figures that miss their target is in
[the notes](performance-notes.md).

![Every ratio with its target](performance.png)
"""
_FIGURES = ("ours", "theirs", "ratio", "low", "high", "limit")


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the CSV: a row with its part of the benchmark, time and machine."""

    part: str
    date: str
    machine: str
    row: Row


def results_of(part: str, rows: Iterable[Row]) -> list[Result]:
    """Lines for rows measured now on this machine."""
    date = datetime.date.today().isoformat()
    return [Result(part, date, _machine(), row) for row in rows]


def write(measured: list[Result], order: list[str], folder: Path = FOLDER) -> None:
    """Replace the earlier results of the measured parts, and write page and picture again."""
    csv_file = folder / "performance.csv"
    parts = {result.part for result in measured}
    kept = [result for result in _read(csv_file) if result.part not in parts]
    results = sorted([*kept, *measured], key=lambda result: order.index(result.part))
    with csv_file.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["part", "date", "machine", *(field.name for field in dataclasses.fields(Row))])
        writer.writeheader()
        for result in results:
            values = {name: _written(value) for name, value in dataclasses.asdict(result.row).items()}
            writer.writerow({"part": result.part, "date": result.date, "machine": result.machine, **values})
    results = _read(csv_file)
    (folder / "performance.md").write_text(_page(results))
    _draw(results, folder / "performance.png")


def _read(csv_file: Path) -> list[Result]:
    if not csv_file.exists():
        return []
    with csv_file.open(newline="") as file:
        return [_result(line) for line in csv.DictReader(file)]


def _result(line: dict[str, str]) -> Result:
    part, date, machine = (line.pop(name) for name in ("part", "date", "machine"))
    written = {name: line.pop(name) for name in _FIGURES}
    figures: dict[str, Any] = {name: float(value) if value else None for name, value in written.items()}
    return Result(part, date, machine, Row(**line, **figures))


def _written(value: object) -> object:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else value


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor()
    return (
        f"{len(models) or '?'} cores of {name} ({torch.backends.cpu.get_cpu_capability()}), Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )


def _page(results: list[Result]) -> str:
    targets = sum(bool(result.row.verdict) for result in results)
    missed = sum(result.row.verdict == "MISSED" for result in results)
    lines = [HEAD, f"{targets} targets, {missed} missed."]
    area = None
    for result in results:
        row = result.row
        if row.area != area:
            area = row.area
            lines += ["", f"## {row.area[0].upper()}{row.area[1:]}", "", f"{result.date}, {result.machine}", ""]
            lines += ["| ours | beside | ours | theirs | ratio | target | |", "|---|---|--:|--:|--:|--:|---|"]
        spread = f" ({shown(row.low)}–{shown(row.high)})" if row.low != row.high else ""
        target = "" if row.limit is None else f"≤ {row.limit:.3g}"
        lines.append(
            f"| {row.what} | {row.beside} | {row.ours:.4g} {row.unit} | {row.theirs:.4g} {row.unit} | "
            f"{shown(row.ratio)}{spread} | {target} | {row.verdict} |"
        )
    return "\n".join(lines) + "\n"


_LINES = {2.5: "target", 1.5: "quartiles of single repeats"}  # by width


def _draw(results: list[Result], png: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = [result.row for result in results if result.row.limit is not None][::-1]
    figure, axes = plt.subplots(figsize=(11, 0.42 * len(rows) + 1.8))
    colors = {"met": "#0072B2", "MISSED": "#D55E00"}  # Okabe & Ito's blue and vermilion
    for place, row in enumerate(rows):
        axes.barh(place, row.ratio, color=colors[row.verdict], alpha=0.8)
        axes.plot([row.low, row.high], [place, place], color="black")
        axes.plot([row.limit, row.limit], [place - 0.45, place + 0.45], color="black", linewidth=2.5)
        # A third decimal where two don't tell the ratio from its target.
        ratio = f"{row.ratio:.3f}" if shown(row.ratio) == shown(row.limit) else shown(row.ratio)
        axes.annotate(f" {ratio}", (max(row.ratio, row.high, row.limit), place), va="center")
    axes.set_yticks(range(len(rows)), _labels(rows), fontsize=8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set_xlabel("ours ÷ theirs: less is better")
    legend = [Patch(color=color, alpha=0.8, label=f"target {verdict.lower()}") for verdict, color in colors.items()]
    legend += [Line2D([], [], color="black", linewidth=width, label=name) for width, name in _LINES.items()]
    axes.legend(handles=legend, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False)
    figure.tight_layout()
    figure.savefig(png, dpi=110)
    plt.close(figure)


def _labels(rows: list[Row]) -> list[str]:
    """What each row compares, with as much of its area as tells it from the others."""
    short = [(row.what, row.beside) for row in rows]
    labels = []
    for row in rows:
        same = [other.area.split(", ") for other in rows if (other.what, other.beside) == (row.what, row.beside)]
        own = [part for part in row.area.split(", ") if not all(part in area for area in same)]
        named = ", ".join((row.what, *own)) if short.count((row.what, row.beside)) > 1 else row.what
        labels.append(f"{named}\n÷ {row.beside}")
    return labels
