"""Compare finished runs, as a table and as curves, without W&B.

Give folders of runs or of sweeps: syncbn compare outputs/*. The table shows the differences between the runs' configs
and their metrics; the plot shows their validation curves.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from syncbn import cli
from syncbn.cli.arguments import Parser
from syncbn.norm.core.options import option, required
from syncbn.run.errors import UserError, user_mistakes

_METRICS = ("val/acc", "test/acc", "test/loss")


@dataclass
class Options:
    """Options of `syncbn compare`."""

    folders: list[str] = required("of runs and of sweeps")
    plot: Path = option(Path("compare.png"), "file for the picture of the curves")


PARSER = Parser("syncbn compare", __doc__, Options, words="folders")


@dataclass(frozen=True)
class Finished:
    """A finished run: its name, its overrides of the defaults, and its metrics by epoch."""

    name: str
    settings: Mapping[str, str]
    rows: list[dict[str, str]]

    def curve(self, metric: str) -> tuple[list[float], list[float]]:
        """Epochs and values of a metric."""
        rows = [row for row in self.rows if row.get(metric) and row.get("epoch")]
        points = [(float(row["epoch"]), float(row[metric])) for row in rows]
        return [epoch for epoch, _ in points], [value for _, value in points]

    def final(self, metric: str) -> float | None:
        """Best validation accuracy, or last value of another metric; None if the run has none."""
        values = self.curve(metric)[1]
        return (max(values) if metric == "val/acc" else values[-1]) if values else None


def main() -> None:
    """Read folders from the command line, print the table and save the plot."""
    PARSER.main(compare)


def compare(arguments: list[str]) -> None:
    """Print the table of runs, and save the plot.

    Args:
        arguments: folders, and options of `PARSER`.
    """
    with user_mistakes():
        options = PARSER.read(arguments)
    runs = find_runs(map(Path, options.folders))
    if not runs:
        raise UserError(f"no finished run in {', '.join(options.folders) or 'no folders'}: syncbn compare outputs/*")
    print_table(runs)
    plot_curves(runs, options.plot)
    print(f"plot: {options.plot}")


def find_runs(folders: Iterable[Path]) -> list[Finished]:
    """Find runs in folders and in the numbered folders of sweeps; other folders are skipped."""
    places = [(place, folder) for folder in folders for place in [folder, *sorted(folder.glob("*/"))]]
    return [_read(place, folder) for place, folder in places if _is_run(place)]


def print_table(runs: list[Finished]) -> None:
    """Print a row per run: the overrides in which runs differ, and metrics."""
    from rich.console import Console
    from rich.table import Table

    table = Table("run", *(columns := _differing(runs)), *_METRICS)
    for run in runs:
        metrics = ("" if (value := run.final(metric)) is None else f"{value:.4f}" for metric in _METRICS)
        table.add_row(run.name, *(run.settings.get(column, "") for column in columns), *metrics)
    # Files and pipes get a width that truncates nothing.
    console = Console()
    (console if console.is_terminal else Console(width=400)).print(table)


def plot_curves(runs: list[Finished], path: Path) -> None:
    """Plot validation accuracy and loss of all runs over epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    columns = _differing(runs)
    for axes, metric in zip(figure.subplots(1, 2), ("val/acc", "val/loss"), strict=True):
        for run in runs:
            label = " ".join(f"{key}={run.settings[key]}" for key in columns if key in run.settings) or run.name
            axes.plot(*run.curve(metric), label=label, marker=".")
        axes.set(xlabel="epoch", ylabel=metric)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _is_run(place: Path) -> bool:
    return (place / ".hydra" / "overrides.yaml").is_file() and (place / "metrics.csv").is_file()


def _read(place: Path, folder: Path) -> Finished:
    overrides = [str(item) for item in OmegaConf.load(place / ".hydra" / "overrides.yaml")]
    settings = dict(item.lstrip("+~").split("=", 1) for item in overrides if "=" in item)
    with (place / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return Finished(place.name if place == folder else f"{folder.name}/{place.name}", settings, rows)


def _differing(runs: list[Finished]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]


if __name__ == "__main__":
    cli.run("compare")
