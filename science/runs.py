"""The runs of a plan: each one a config of `syncbn train`, and what is measured of it."""

import functools
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from science.plan import Cell, Plan, Scale
from science.records import Record, Records
from syncbn.launch.world import World
from syncbn.norm.core.options import defaults
from syncbn.run.command_line import CommandLine
from syncbn.run.compose import checked_configs, config_of
from syncbn.run.described import options_at
from syncbn.run.errors import UserError
from syncbn.run.main_options import Main

# Every run ends with its last weights: nothing is chosen by a validation, and nothing is written but the record.
_ALWAYS = ("callbacks=none", "~logger", "trainer.enable_progress_bar=false", "trainer.limit_val_batches=0")
_ON_CPU = ("threads=1", "trainer.accelerator=cpu")
_BESIDE = ("run_id", "output_root", "paths", "tags", "task_name")  # what no figure depends on


class Trial(NamedTuple):
    """One training: a cell and a seed."""

    cell: Cell
    seed: int


class Setting(NamedTuple):
    """What a measure is given.

    Attributes:
        config: checked.
        options: of its own.
        world: the process among the ranks.
        picture: a file for a picture of the run, which the page then shows; None where there shall be none.
    """

    config: DictConfig
    options: dict[str, Any]
    world: World
    picture: Path | None = None


def missing_trials(plan: Plan, records: Records, scale: Scale = "small") -> list[Trial]:
    """The runs that aren't among the records, seed by seed, so that what there is can be compared at any time."""
    trials = [Trial(cell, seed) for seed in plan.seeds_of(scale) for cell in plan.cells(scale)]
    return [trial for trial in trials if not records.has(trial.cell.name, trial.seed)]


def settings_of(plan: Plan, scale: Scale = "small") -> dict[str, str]:
    """By cell, a hash of everything that its runs depend on but the seed and the code; the configs are checked.

    Raises:
        ValueError: the plan has nothing to run at this scale.
    """
    cells = plan.cells(scale)
    if not cells:
        raise ValueError(f"{plan.name} has no runs at scale={scale}: allowed: smoke, small")
    ranks = plan.ranks_of(scale)
    return {cell.name: _hash(plan.grids[cell.grid].measure, cell, ranks, scale) for cell in cells}


def carry_out(
    plan: Plan,
    trials: list[Trial],
    records: Records,
    settings: Mapping[str, str],
    world: World,
    scale: Scale = "small",
    commit: str = "",
) -> Iterator[tuple[Trial, float]]:
    """Do the runs, on every rank alike, and yield each with its seconds; the first rank keeps the records.

    Args:
        plan: whose runs they are.
        trials: to do.
        records: to add to.
        settings: of `settings_of`.
        world: this process among the ranks.
        scale: of the runs.
        commit: that holds the plan's claims, for the records.
    """
    from science.measures import find

    first_seed, claims = plan.seeds_of(scale)[0], plan.claims_hash()
    for trial in trials:
        measure: Callable[[Setting], dict[str, float]] = find(plan.grids[trial.cell.grid].measure)
        config = config_of(_overrides(trial.cell, trial.seed, world.world_size, scale))
        options = OmegaConf.to_container(OmegaConf.from_dotlist(list(trial.cell.options)))
        assert isinstance(options, dict)
        started, used = time.monotonic(), time.process_time()
        shows = trial.seed == first_seed and world.rank == 0
        picture = picture_of(plan, trial.cell, records.path.parent) if shows else None
        found = measure(Setting(config, {str(key): value for key, value in options.items()}, world, picture))
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - used
        if world.rank == 0:
            wanted = plan.grids[trial.cell.grid].metrics
            if absent := [name for name in wanted if name not in found]:
                raise UserError(
                    f"{trial.cell.name} has no metric {', '.join(absent)}; it has {', '.join(sorted(found))}"
                )
            metrics = {name: float(found[name]) for name in wanted}
            made = (settings[trial.cell.name], claims, commit, seconds, cpu_seconds, _made(), metrics)
            records.add(Record(trial.cell.name, trial.seed, *made))
        yield trial, seconds


def picture_of(plan: Plan, cell: Cell, folder: Path) -> Path:
    """Where a measure may leave a picture of a cell's first run."""
    return folder / f"{plan.name}-{'-'.join(cell.choices).replace(' ', '_')}.png"


def _hash(measure: str, cell: Cell, ranks: int, scale: Scale) -> str:
    config = _checked(tuple(_overrides(cell, 0, ranks, scale)))
    said = _said({key: value for key, value in config.items() if key not in _BESIDE}, "config")
    what = [said, sorted(cell.options), measure, ranks]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


@functools.cache  # cells that differ in options alone have one config
def _checked(overrides: tuple[str, ...]) -> dict[str, Any]:
    (config,) = checked_configs(CommandLine(overrides))
    return config


def _said(node: Any, where: str = "") -> Any:
    """What a config says that its options' defaults don't: an option that comes later leaves the settings the same.

    A default is the code's. Who changes one has the plans say what they were made with.
    """
    if isinstance(node, dict):
        options = Main if where == "config" else options_at(where.removeprefix("config."), node)
        usual = {} if options is None else defaults(options)
        return {
            key: _said(value, f"{where}.{key}")
            for key, value in node.items()
            if (_plain(usual[key]) != value if key in usual else value is not None)
        }
    return [_said(value) for value in node] if isinstance(node, list) else node


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _made() -> str:
    versions = f"Python {platform.python_version()}, torch {version('torch')}, lightning {version('lightning')}"
    return f"{versions}, {date.today().isoformat()}"


def _overrides(cell: Cell, seed: int, ranks: int, scale: Scale) -> list[str]:
    machine = () if scale == "full" else _ON_CPU
    return [*_ALWAYS, *machine, *(["trainer=ddp"] if ranks > 1 else []), *cell.overrides, f"seed={seed}"]
