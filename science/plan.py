"""A result's plan: a file of `science/plans/`, written before the runs."""

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from omegaconf import OmegaConf

from syncbn.norm.core.options import Count, Natural, Positive, Range, mistakes, suggest

Scale = Literal["smoke", "small", "full"]
SMOKE_SEEDS = 2
PLANS = Path(__file__).parent / "plans"
EARLIER = Path(__file__).parent / "earlier"  # plans whose pages stand until their successors have been run
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
        full: overrides in the place of `overrides` for the full size; without, the grid isn't run there.
        log: axes and metrics to draw on a logarithmic scale.
    """

    title: str
    metrics: dict[str, Metric]
    overrides: list[str] = field(default_factory=list)
    axes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    measure: str = "train"
    smoke: list[str] = field(default_factory=list)
    full: list[str] | None = None
    log: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Side:
    """One side of an inequality: `times` the metric of a cell, which is named grid/choice/choice.

    With `minus`, what the cell has more than that other cell.
    """

    cell: str
    metric: str
    times: float = 1.0
    minus: str | None = None


@dataclass(frozen=True)
class Claim:
    """An inequality: left > right + margin, left < right - margin, or |left - right| < margin ("within").

    On the scale "ratio", for what is positive and varies by factors, logarithms are compared: left > right · (1 + m),
    left < right / (1 + m), or left / right between 1 / (1 + m) and 1 + m, with m the margin.
    """

    text: str
    left: Side
    relation: Literal[">", "<", "within"]
    right: Side | float
    margin: Annotated[float, Range(low=0)] = 0.0
    scale: Literal["difference", "ratio"] = "difference"

    def sides(self) -> list[Side]:
        """Those that are measured."""
        return [side for side in (self.left, self.right) if isinstance(side, Side)]


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
        budget_minutes: of all runs, on two idle cores.
        grids: the runs, by name.
        claims: the inequalities.
        headline: for the summary.
        ranks: processes of every run.
        seeds: runs of every cell.
        first_seed: of those; seeds before it are for pilots.
        pilots: what was tried before the claims were written, and on which seeds.
        full: what is trained at the full size.
        full_ranks: processes of every run there.
        reading: written after the runs: what the figures don't say by themselves.
    """

    name: str
    title: str
    claim: str
    source: str
    figure: str
    setting: str
    differs: str
    budget_minutes: Annotated[float, Range(above=0, high=90)]
    grids: dict[str, Grid]
    claims: list[Claim]
    headline: Headline
    ranks: Count = 1
    seeds: Annotated[int, Range(low=5)] = 5
    first_seed: Natural = 0
    pilots: str = ""
    full: str = ""
    full_ranks: Count = 1
    reading: str = ""

    def cells(self, scale: Scale = "small") -> list[Cell]:
        """The cells of all grids; in the smoke size those alone that the claims and the headline name."""
        cells = [cell for name, grid in self.grids.items() for cell in _cells(name, grid, scale)]
        return [cell for cell in cells if cell.name in self.named()] if scale == "smoke" else cells

    def seeds_of(self, scale: Scale = "small") -> range:
        """The seeds of every cell's runs; in the smoke size two that the plan itself may not use."""
        return range(SMOKE_SEEDS) if scale == "smoke" else range(self.first_seed, self.first_seed + self.seeds)

    def ranks_of(self, scale: Scale = "small") -> int:
        """The processes of every run; in the smoke size two where ranks matter."""
        return {"smoke": min(self.ranks, 2), "small": self.ranks, "full": self.full_ranks}[scale]

    def named(self) -> set[str]:
        """The cells that the claims and the headline are about."""
        sides = [side for claim in self.claims for side in claim.sides()]
        others = {side.minus for side in sides if side.minus is not None}
        headline = {cell for cells in self.headline.series.values() for cell in cells}
        return {side.cell for side in sides} | others | headline

    def claims_hash(self) -> str:
        """Of what decides: the inequalities, and the seeds that they are judged on."""
        decides = [[asdict(claim) for claim in self.claims], self.first_seed, self.seeds]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]

    def metrics(self) -> dict[str, Metric]:
        """Of all grids."""
        return {name: metric for grid in self.grids.values() for name, metric in grid.metrics.items()}


def available_results() -> list[str]:
    """The names of the files in `science/plans/`."""
    return sorted(file.stem for file in PLANS.glob("*.yaml"))


def load_plan(name: str) -> Plan:
    """The plan of a name, checked.

    Raises:
        ValueError: there is no such result, or its file doesn't say what a plan says.
    """
    if name not in available_results():
        raise ValueError(f"no result {name!r}; {suggest(name, available_results())}")
    return read_plan(PLANS / f"{name}.yaml")


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        ValueError: it doesn't say what a plan says.
    """
    return parse_plan(path.read_text(), path)


def parse_plan(text: str, path: Path) -> Plan:
    """The plan that a file's text is.

    Raises:
        ValueError: it doesn't say what a plan says.
    """
    found: Any = {"name": path.stem, **dict(OmegaConf.to_container(OmegaConf.create(text)))}  # type: ignore[arg-type]
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


def _cells(name: str, grid: Grid, scale: Scale) -> list[Cell]:
    common = grid.full if scale == "full" else grid.overrides
    if common is None:
        return []
    cells = []
    for choices in itertools.product(*grid.axes.values()):
        chosen = [grid.axes[axis][choice] for axis, choice in zip(grid.axes, choices, strict=True)]
        every = [*common, *itertools.chain(*chosen), *(grid.smoke if scale == "smoke" else ())]
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
    sides = [side for claim in plan.claims for side in claim.sides()]
    sides += [Side(side.minus, side.metric) for side in sides if side.minus is not None]
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
