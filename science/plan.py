"""Plan of a result: a file of `science/plans/`, written before the runs."""

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from omegaconf import OmegaConf

from syncbn.norm.core.options import Count, Natural, Positive, Range, mistakes, suggest

Scale = Literal["smoke", "small", "full"]
SMOKE_SEEDS = 1
PLANS = Path(__file__).parent / "plans"
_OPTION = "measure."  # prefix of a cell's overrides for the measure instead of the config


@dataclass(frozen=True)
class Metric:
    """A column of the records; pages show `scale` times the value with `digits` decimals."""

    title: str
    scale: Positive = 1.0
    digits: Natural = 1


@dataclass(frozen=True)
class Grid:
    """Runs of one kind: a cell for each combination of the axes' choices.

    Attributes:
        title: title of the table.
        metrics: metrics of a run to keep, by name.
        overrides: overrides of `syncbn train` for all cells.
        axes: overrides by axis and choice. Those that begin with "measure." are the measure's options.
        measure: a name of `science.measures`.
        smoke: additional overrides for the smoke size.
        full: overrides instead of `overrides` for the full size; without them, the grid isn't run there.
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
    """One side of an inequality: `times` the metric of a cell, named as grid/choice/choice.

    With `minus`, that cell's metric is subtracted.
    """

    cell: str
    metric: str
    times: float = 1.0
    minus: str | None = None


@dataclass(frozen=True)
class Claim:
    """An inequality: left > right + margin, left < right - margin, or |left - right| < margin ("within").

    The scale "ratio" compares logarithms, for positive values that vary by factors: left > right · (1 + m),
    left < right / (1 + m), or left / right between 1 / (1 + m) and 1 + m, with m the margin.
    """

    text: str
    left: Side
    relation: Literal[">", "<", "within"]
    right: Side | float
    margin: Annotated[float, Range(low=0)] = 0.0
    scale: Literal["difference", "ratio"] = "difference"

    def sides(self) -> list[Side]:
        """Sides that are measured."""
        return [side for side in (self.left, self.right) if isinstance(side, Side)]


@dataclass(frozen=True)
class Headline:
    """Figures for the summary: one metric of some cells, by series, along `ticks`."""

    metric: str
    series: dict[str, list[str]]
    ticks: list[str] = field(default_factory=list)


class Cell(NamedTuple):
    """One cell of a grid: the overrides of its config and the options of its measure."""

    grid: str
    choices: tuple[str, ...]
    overrides: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        return "/".join((self.grid, *self.choices))


@dataclass(frozen=True)
class Plan:
    """A claim of the literature, the runs that test it, and the inequalities that decide on it.

    Attributes:
        name: name of the file.
        title: title of the page.
        claim: claim of the source.
        source: authors and publication, with a link.
        figure: published figures.
        setting: description of the training here.
        differs: differences from the source.
        budget_minutes: time for all runs, on two idle cores.
        grids: grids of runs, by name.
        claims: inequalities to judge.
        headline: figures for the summary.
        ranks: processes of every run.
        seeds: runs of every cell.
        first_seed: first of these seeds; seeds before it are for pilots.
        pilots: experiments made before the claims were written, with their seeds.
        full: description of the training at the full size.
        full_ranks: processes of every run there.
        reading: interpretation, written after the runs.
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
        """Cells of all grids; in the smoke size as few as have every choice that the claims and the headline name."""
        cells = [cell for name, grid in self.grids.items() for cell in _cells(name, grid, scale)]
        return _covering([cell for cell in cells if cell.name in self.named()]) if scale == "smoke" else cells

    def seeds_of(self, scale: Scale = "small") -> range:
        """Seeds of every cell's runs; in the smoke size the first, which is for pilots."""
        return range(SMOKE_SEEDS) if scale == "smoke" else range(self.first_seed, self.first_seed + self.seeds)

    def ranks_of(self, scale: Scale = "small") -> int:
        """Processes of every run; in the smoke size two where ranks matter."""
        return {"smoke": min(self.ranks, 2), "small": self.ranks, "full": self.full_ranks}[scale]

    def named(self) -> set[str]:
        """Cells that the claims and the headline name."""
        sides = [side for claim in self.claims for side in claim.sides()]
        others = {side.minus for side in sides if side.minus is not None}
        headline = {cell for cells in self.headline.series.values() for cell in cells}
        return {side.cell for side in sides} | others | headline

    def claims_hash(self) -> str:
        """Hash of the inequalities and the seeds that they are judged on."""
        decides = [[asdict(claim) for claim in self.claims], self.first_seed, self.seeds]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]

    def metrics(self) -> dict[str, Metric]:
        """Metrics of all grids."""
        return {name: metric for grid in self.grids.values() for name, metric in grid.metrics.items()}


def available_results() -> list[str]:
    """Names of the files in `science/plans/`."""
    return sorted(file.stem for file in PLANS.glob("*.yaml"))


def load_plan(name: str) -> Plan:
    """Load and check a plan by name.

    Raises:
        ValueError: an unknown result, or an invalid plan.
    """
    if name not in available_results():
        raise ValueError(f"no result {name!r}; {suggest(name, available_results())}")
    return read_plan(PLANS / f"{name}.yaml")


def read_plan(path: Path) -> Plan:
    """Read and check the plan in a file.

    Raises:
        ValueError: the plan is invalid.
    """
    return parse_plan(path.read_text(), path)


def parse_plan(text: str, path: Path) -> Plan:
    """Parse and check the text of a plan.

    Raises:
        ValueError: the plan is invalid.
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


def _covering(cells: list[Cell]) -> list[Cell]:
    """Cells with a choice that no earlier cell of their grid has, and all cells of grids without axes."""
    seen: set[tuple[str, int, str]] = set()
    kept = []
    for cell in cells:
        choices = {(cell.grid, axis, choice) for axis, choice in enumerate(cell.choices)}
        if not choices or choices - seen:
            kept.append(cell)
        seen |= choices
    return kept


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
