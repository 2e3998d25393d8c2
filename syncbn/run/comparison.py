"""Finished runs side by side: what differs between them, and their metrics, with seeds averaged."""

import csv
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from syncbn.norm.core.options import suggest

# Runs that differ in these alone are one setting; of these the seed alone may be a column.
_SEED = "seed"
_ROOM = 60  # letters of a label beside a line
_BESIDE = ("run_id", "output_root", "paths", "resume", "tags", "task_name", "logger")
_HIGHEST = ("val/acc", "val/miou")  # metrics of which a run's best epoch counts


class Mean(NamedTuple):
    """Mean of some values; `half` is half of its 95 % interval by Student's t, None of fewer than two values."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Compute it. The interval assumes that the values are independent and about normal."""
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, None)
        from scipy import stats

        deviation = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
        return cls(mean, float(stats.t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values)))


@dataclass(frozen=True)
class Finished:
    """A finished run: its name, its overrides of the defaults, its whole config, and its metrics by epoch."""

    name: str
    settings: Mapping[str, str]
    config: Mapping[str, str]
    rows: list[dict[str, str]]

    @cached_property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """What its result depends on, without the seed: the config, since the same overrides may have had others."""
        of = self.config or self.settings
        return tuple(sorted((key, value) for key, value in of.items() if key.split(".")[0] not in (_SEED, *_BESIDE)))

    @property
    def seed(self) -> str:
        """Its seed."""
        return (self.config or self.settings).get(_SEED, "")

    def curve(self, metric: str) -> dict[float, float]:
        """Values of a metric by epoch.

        Raises:
            ValueError: one that is no number.
        """
        rows = [row for row in self.rows if row.get(metric) and row.get("epoch")]
        try:
            return {float(row["epoch"]): float(row[metric]) for row in rows}
        except ValueError as error:
            raise ValueError(f"metrics.csv of run {self.name}, {metric}: {error}") from error

    @cached_property
    def metrics(self) -> list[str]:
        """Names of the metrics that it has values of, in order."""
        names = dict.fromkeys(name for row in self.rows for name, value in row.items() if value)
        return [name for name in names if name not in ("epoch", "step") and self.curve(name)]

    def final(self, metric: str) -> float | None:
        """Best value of a validation accuracy, last value of another metric; None if the run has none.

        A NaN is no best value, unless there is no other, and a last value as any other.
        """
        values = list(self.curve(metric).values())
        if metric in _HIGHEST:
            return max((value for value in values if not math.isnan(value)), default=values[-1] if values else None)
        return values[-1] if values else None


@dataclass(frozen=True)
class Group:
    """Runs with the same settings, but for the seed."""

    runs: list[Finished]

    @property
    def name(self) -> str:
        """Name of the run, or of the first of several."""
        first = self.runs[0].name
        return first if len(self.runs) == 1 else f"{first} and {len(self.runs) - 1} more"

    @property
    def settings(self) -> dict[str, str]:
        """Overrides that the runs have in common."""
        return {
            key: value
            for key, value in self.runs[0].settings.items()
            if key not in _BESIDE and all(run.settings.get(key) == value for run in self.runs)
        }

    def final(self, metric: str) -> Mean | None:
        """The runs' final values; None if none of them has the metric."""
        values = [value for run in self.runs if (value := run.final(metric)) is not None]
        return Mean.of(values) if values else None

    def curve(self, metric: str) -> dict[float, Mean]:
        """The runs' values by epoch, for epochs that all of them have."""
        curves = [curve for run in self.runs if (curve := run.curve(metric))]
        epochs = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
        return {epoch: Mean.of([curve[epoch] for curve in curves]) for epoch in epochs}


@dataclass(frozen=True)
class Comparison:
    """Groups of runs and the metrics to compare them by; `repeated` are runs left out, and those they repeat."""

    groups: list[Group]
    metrics: Sequence[str]
    repeated: Sequence[tuple[str, str]] = ()

    @cached_property
    def columns(self) -> list[str]:
        """Settings in which the groups differ: overrides, then what differs in spite of equal overrides."""
        shown = [{key: value for key, value in group.settings.items() if key != _SEED} for group in self.groups]
        if len(self.groups) > 1 and all(
            group.runs[0].setting == self.groups[0].runs[0].setting for group in self.groups
        ):
            shown = [group.settings for group in self.groups]  # runs of one setting, apart
        columns = _differing(shown)
        alike: dict[object, list[Group]] = {}
        for group, settings in zip(self.groups, shown, strict=True):
            alike.setdefault(tuple(settings.get(column) for column in columns), []).append(group)
        more = [
            key for groups in alike.values() for key in _differing([dict(group.runs[0].setting) for group in groups])
        ]
        return [*columns, *dict.fromkeys(key for key in more if key not in columns)]

    def setting(self, group: Group, column: str) -> str:
        """A group's value in a column, or an empty text."""
        explained = column in {key for other in self.groups for key in other.settings}
        return (group.settings if explained else dict(group.runs[0].setting)).get(column, "")

    def label(self, group: Group) -> str:
        """Label that distinguishes a group from the others: its settings, or its name where a figure has no room."""
        words = " ".join(f"{key}={value}" for key in self.columns if (value := self.setting(group, key)))
        return words if 0 < len(words) <= _ROOM else group.name

    def header(self) -> list[str]:
        """Names of the table's columns."""
        return ["run", *self.columns, *(["runs"] if self._averages else []), *self.metrics]

    def rows(self, plus_minus: str = " ± ") -> list[list[str]]:
        """Cells of the table, a row for each group."""
        return [
            [
                group.name,
                *(self.setting(group, column) for column in self.columns),
                *([str(len(group.runs))] if self._averages else []),
                *(_shown(group.final(metric), plus_minus) for metric in self.metrics),
            ]
            for group in self.groups
        ]

    @property
    def _averages(self) -> bool:
        return any(len(group.runs) > 1 for group in self.groups)


def find_runs(folders: Iterable[Path]) -> list[Finished]:
    """Find runs in folders and in the numbered folders of sweeps; other folders are skipped."""
    places = [
        (place, folder)
        for folder in folders
        for place in [folder, *sorted(folder.glob("*/"), key=lambda job: (len(job.name), job.name))]
    ]
    once: dict[Path, tuple[Path, Path]] = {}  # a folder that is named twice is one run
    for place, folder in places:
        once.setdefault(place.resolve(), (place, folder))
    return [_read(place, folder) for place, folder in once.values() if _is_run(place)]


def compared(runs: Sequence[Finished], metrics: Sequence[str], *, average: bool) -> Comparison:
    """Put runs side by side; with `average`, those that differ by their seed alone are one.

    A run with the config and the seed of an earlier one tells nothing new, and an average with it would seem surer than
    it is: it is left out, and named in `repeated`.

    Raises:
        ValueError: no run has one of the metrics.
    """
    known = sorted({name for run in runs for name in run.metrics})
    for metric in metrics:
        if not any(run.curve(metric) for run in runs):
            raise ValueError(f"metric={metric}: no run has it; {suggest(metric, known)}")
    if not average:
        return Comparison([Group([run]) for run in runs], metrics)
    groups: dict[object, list[Finished]] = {}
    repeated = []
    for run in runs:
        group = groups.setdefault(run.setting, [])
        same = [other.name for other in group if other.seed == run.seed]
        if same:
            repeated.append((run.name, same[0]))
        else:
            group.append(run)
    return Comparison([Group(members) for members in groups.values()], metrics, repeated)


def check_suffix(name: str, path: Path, allowed: Iterable[str]) -> None:
    """Raise `ValueError` unless a file's name ends as one of those allowed."""
    if path.suffix not in allowed:
        raise ValueError(f"{name}={path}: allowed are files of {', '.join(allowed)}")


def write_table(comparison: Comparison, path: Path) -> None:
    """Write the table as CSV, Markdown or LaTeX, by the file's suffix.

    Raises:
        ValueError: another suffix.
    """
    check_suffix("table", path, _WRITERS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(_WRITERS[path.suffix](comparison))


def _csv(comparison: Comparison) -> str:
    """Means and halves of intervals in columns of their own, unrounded."""
    names = [name for metric in comparison.metrics for name in (metric, f"{metric} ±")]
    lines = [["run", *comparison.columns, "runs", *names]]
    for group in comparison.groups:
        cells = [
            group.name,
            *(comparison.setting(group, column) for column in comparison.columns),
            str(len(group.runs)),
        ]
        for found in map(group.final, comparison.metrics):
            cells += ["", ""] if found is None else [repr(found.mean), "" if found.half is None else repr(found.half)]
        lines.append(cells)
    return "".join(",".join(map(_quoted, line)) + "\n" for line in lines)


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\n') else cell


def _markdown(comparison: Comparison) -> str:
    header = comparison.header()
    lines = [header, ["---"] * len(header), *comparison.rows()]
    return "".join("| " + " | ".join(map(_literal, line)) + " |\n" for line in lines)


def _literal(cell: str) -> str:
    """Keep Markdown from reading anything into a cell; an underscore within a word says nothing there."""
    return re.sub(r"[\\|*`<$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", _in_a_line(cell)) if cell != "---" else cell


def _in_a_line(cell: str) -> str:
    """A line break would end the row of a table."""
    return re.sub(r"\s*[\r\n]+\s*", " ", cell)


def _latex(comparison: Comparison) -> str:
    """A `tabular` for the package booktabs."""
    header = comparison.header()
    words = len(header) - len(comparison.metrics)
    rows = [" & ".join(map(_escaped, row)) + r" \\" for row in [header, *comparison.rows(" PLUSMINUS ")]]
    body = [r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
    alignment = "l" * words + "r" * len(comparison.metrics)
    return "\n".join([rf"\begin{{tabular}}{{{alignment}}}", *body, r"\end{tabular}", ""])


def _escaped(cell: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}  # other letters in LaTeX's old fonts
    special |= {"[": "{[}"}  # after the end of a row it would begin an argument
    special |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    return "".join(special.get(sign, sign) for sign in _in_a_line(cell)).replace(" PLUSMINUS ", r" $\pm$ ")


_WRITERS = {".csv": _csv, ".md": _markdown, ".tex": _latex}
TABLES = tuple(_WRITERS)


def _shown(found: Mean | None, plus_minus: str) -> str:
    if found is None:
        return ""
    return f"{found.mean:.4f}" + ("" if found.half is None else f"{plus_minus}{found.half:.4f}")


def _differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    keys = dict.fromkeys(key for of_one in settings for key in of_one)
    return [key for key in keys if len({of_one.get(key) for of_one in settings}) > 1]


def _is_run(place: Path) -> bool:
    return (place / ".hydra" / "overrides.yaml").is_file() and (place / "metrics.csv").is_file()


def _read(place: Path, folder: Path) -> Finished:
    overrides = [str(item) for item in OmegaConf.load(place / ".hydra" / "overrides.yaml")]
    settings = dict(item.lstrip("+~").split("=", 1) for item in overrides if "=" in item)
    config = place / ".hydra" / "config.yaml"
    flat = _flat(OmegaConf.to_container(OmegaConf.load(config))) if config.is_file() else {}
    with (place / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return Finished(place.name if place == folder else f"{folder.name}/{place.name}", settings, flat, rows)


def _flat(node: Any, prefix: str = "") -> dict[str, str]:
    """Values by their dotted keys."""
    if not isinstance(node, dict) or not node:
        return {prefix.removesuffix("."): str(node)}
    return {key: value for name, inner in node.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}
