"""A result's plan: a file of `science/plans/`, written before the runs."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from omegaconf import OmegaConf

from syncbn.norm.core.options import Count, Natural, Positive, Range, mistakes, suggest

SMOKE_SEEDS = 2
_PLANS = Path(__file__).parent / "plans"
_OPTION = "measure."  # how an override of a cell begins that is for the measure, not for the config


@dataclass(frozen=True)
class Metric:
    """A column of the records, and how pages show it: `scale` times the value, with `digits` decimals."""

    title: str
    scale: Positive = 1.0
    digits: Natural = 1


@dataclass(frozen=True)
class Grid:
    """Runs of one kind: a cell for each combination of the axes' choices.

    Attributes:
        title: what the table shows.
        metrics: what of a run's metrics is kept, by name.
        overrides: of `syncbn train`, for all cells.
        axes: by name; of each choice its own overrides. Those that begin with "measure." are the measure's options.
        measure: a name of `science.measures`.
        smoke: more overrides, for the smoke size.
        log: axes and metrics to draw on a logarithmic scale.
    """

    title: str
    metrics: dict[str, Metric]
    overrides: list[str] = field(default_factory=list)
    axes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    measure: str = "train"
    smoke: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Side:
    """One side of an inequality: `times` the metric of a cell, which is named grid/choice/choice."""

    cell: str
    metric: str
    times: float = 1.0


@dataclass(frozen=True)
class Claim:
    """An inequality: left > right + margin, left < right - margin, or |left - right| < margin ("within")."""

    text: str
    left: Side
    relation: Literal[">", "<", "within"]
    right: Side | float
    margin: Annotated[float, Range(low=0)] = 0.0


@dataclass(frozen=True)
class Headline:
    """The few figures of the summary: one metric of some cells, by the name of their series, along `ticks`."""

    metric: str
    series: dict[str, list[str]]
    ticks: list[str] = field(default_factory=list)


class Cell(NamedTuple):
    """One setting of a grid: the overrides of its config and the options of its measure."""

    grid: str
    choices: tuple[str, ...]
    overrides: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        return "/".join((self.grid, *self.choices))


@dataclass(frozen=True)
class Plan:
    """A claim of the literature, the runs that test it, and the inequalities that decide.

    Attributes:
        name: of the file.
        title: of the page.
        claim: what the source says.
        source: who, where, with a link.
        figure: the published figures.
        setting: what is trained here.
        differs: from the source.
        budget_minutes: of the full grid, on two idle cores.
        grids: the runs, by name.
        claims: the inequalities.
        headline: for the summary.
        ranks: processes of every run.
        seeds: runs of every cell, from seed 0.
        reading: written after the runs: what the figures don't say by themselves.
    """

    name: str
    title: str
    claim: str
    source: str
    figure: str
    setting: str
    differs: str
    budget_minutes: Annotated[float, Range(above=0, high=30)]
    grids: dict[str, Grid]
    claims: list[Claim]
    headline: Headline
    ranks: Count = 1
    seeds: Annotated[int, Range(low=5)] = 5
    reading: str = ""

    def cells(self, smoke: bool = False) -> list[Cell]:
        """The cells of all grids; in the smoke size those alone that the claims and the headline name."""
        cells = [cell for name, grid in self.grids.items() for cell in _cells(name, grid, smoke)]
        return [cell for cell in cells if cell.name in self.named()] if smoke else cells

    def named(self) -> set[str]:
        """The cells that the claims and the headline are about."""
        sides = [side for claim in self.claims for side in (claim.left, claim.right) if isinstance(side, Side)]
        return {side.cell for side in sides} | {cell for cells in self.headline.series.values() for cell in cells}

    def metrics(self) -> dict[str, Metric]:
        """Of all grids."""
        return {name: metric for grid in self.grids.values() for name, metric in grid.metrics.items()}


def available_results() -> list[str]:
    """The names of the files in `science/plans/`."""
    return sorted(file.stem for file in _PLANS.glob("*.yaml"))


def load_plan(name: str) -> Plan:
    """The plan of a name, checked.

    Raises:
        ValueError: there is no such result, or its file doesn't say what a plan says.
    """
    if name not in available_results():
        raise ValueError(f"no result {name!r}; {suggest(name, available_results())}")
    return read_plan(_PLANS / f"{name}.yaml")


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        ValueError: it doesn't say what a plan says.
    """
    found: Any = {"name": path.stem, **dict(OmegaConf.to_container(OmegaConf.load(path)))}  # type: ignore[arg-type]
    wrong = mistakes(found, Plan)
    if wrong:
        raise ValueError(f"{path}:\n" + "\n".join(wrong))
    plan = Plan(
        **{key: value for key, value in found.items() if key not in ("grids", "claims", "headline")},
        grids={name: _grid(grid) for name, grid in found["grids"].items()},
        claims=[_claim(claim) for claim in found["claims"]],
        headline=Headline(**found["headline"]),
    )
    _check_names(plan, path)
    return plan


def _cells(name: str, grid: Grid, smoke: bool) -> list[Cell]:
    cells = []
    for choices in itertools.product(*grid.axes.values()):
        chosen = [grid.axes[axis][choice] for axis, choice in zip(grid.axes, choices, strict=True)]
        every = [*grid.overrides, *itertools.chain(*chosen), *(grid.smoke if smoke else ())]
        options = tuple(o.removeprefix(_OPTION) for o in every if o.startswith(_OPTION))
        cells.append(Cell(name, choices, tuple(o for o in every if not o.startswith(_OPTION)), options))
    return cells


def _grid(found: dict[str, Any]) -> Grid:
    return Grid(**{**found, "metrics": {name: Metric(**metric) for name, metric in found["metrics"].items()}})


def _claim(found: dict[str, Any]) -> Claim:
    sides = {key: Side(**found[key]) if isinstance(found[key], dict) else found[key] for key in ("left", "right")}
    return Claim(**{**found, **sides})


def _check_names(plan: Plan, path: Path) -> None:
    cells = {cell.name: cell.grid for cell in plan.cells()}
    sides = [side for claim in plan.claims for side in (claim.left, claim.right) if isinstance(side, Side)]
    sides += [Side(cell, plan.headline.metric) for names in plan.headline.series.values() for cell in names]
    for side in sides:
        if side.cell not in cells:
            raise ValueError(f"{path}: no cell {side.cell!r}; {suggest(side.cell, cells)}")
        metrics = plan.grids[cells[side.cell]].metrics
        if side.metric not in metrics:
            raise ValueError(f"{path}: no metric {side.metric!r} of {side.cell}; {suggest(side.metric, metrics)}")
    ticks = len(plan.headline.ticks) or 1
    if any(len(names) != ticks for names in plan.headline.series.values()):
        raise ValueError(f"{path}: every series of the headline needs {ticks} cells, one for each of its ticks")
