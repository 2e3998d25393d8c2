"""Runs of a plan: each is a config of `syncbn train` and a measure."""

import functools
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
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

# Every run uses its last weights: nothing is selected by validation, and only the record is written.
_ALWAYS = ("callbacks=none", "~logger", "trainer.enable_progress_bar=false", "trainer.limit_val_batches=0")
_ON_CPU = ("threads=1", "trainer.accelerator=cpu")
_BESIDE = ("run_id", "output_root", "paths", "tags", "task_name")  # keys that don't affect results


class Trial(NamedTuple):
    """One training: a cell and a seed."""

    cell: Cell
    seed: int


class Setting(NamedTuple):
    """Input of a measure.

    Attributes:
        config: checked config.
        options: options of the measure.
        world: rank of this process and number of ranks.
        picture: file for a picture of the run for the page; None for no picture.
    """

    config: DictConfig
    options: dict[str, Any]
    world: World
    picture: Path | None = None


def missing_trials(plan: Plan, records: Records, scale: Scale = "small") -> list[Trial]:
    """Runs that aren't recorded, seed by seed, so that finished ones are comparable at any time."""
    trials = [Trial(cell, seed) for seed in plan.seeds_of(scale) for cell in plan.cells(scale)]
    return [trial for trial in trials if not records.has(trial.cell.name, trial.seed)]


def settings_of(plan: Plan, scale: Scale = "small") -> dict[str, str]:
    """Hashes by cell of everything its runs depend on except the seed and the code; checks the configs.

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
    """Do the runs and yield each with its seconds; every rank calls it, and the first one adds the records.

    Args:
        plan: plan of the runs.
        trials: runs to do.
        records: records to add to.
        settings: result of `settings_of`.
        world: rank of this process and number of ranks.
        scale: size of the runs.
        commit: commit that contains the plan's claims, for the records.
    """
    from science.measures import find

    first_seed, claims = plan.seeds_of(scale)[0], plan.claims_hash()
    with TemporaryDirectory() as root:  # one for all trials, so that equal trainings have equal configs
        for trial in trials:
            measure: Callable[[Setting], dict[str, float]] = find(plan.grids[trial.cell.grid].measure)
            config = config_of([*_overrides(trial.cell, trial.seed, world.world_size, scale), f"output_root={root}"])
            options = OmegaConf.to_container(OmegaConf.from_dotlist(list(trial.cell.options)))
            assert isinstance(options, dict)
            started, used = time.monotonic(), time.process_time()
            shows = trial.seed == first_seed and world.rank == 0
            picture = picture_of(plan, trial.cell, records.path.parent) if shows else None
            found = measure(Setting(config, {str(key): value for key, value in options.items()}, world, picture))
            shutil.rmtree(config.paths.output_dir, ignore_errors=True)
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
    """File for a measure's picture of a cell's first run."""
    return folder / f"{plan.name}-{'-'.join(cell.choices).replace(' ', '_')}.png"


def _hash(measure: str, cell: Cell, ranks: int, scale: Scale) -> str:
    config = _checked(tuple(_overrides(cell, 0, ranks, scale)))
    said = _said({key: value for key, value in config.items() if key not in _BESIDE}, "config")
    what = [said, sorted(cell.options), measure, ranks]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


@functools.cache  # cells that differ only in options share a config
def _checked(overrides: tuple[str, ...]) -> dict[str, Any]:
    (config,) = checked_configs(CommandLine(overrides))
    return config


def _said(node: Any, where: str = "") -> Any:
    """Values of a config that differ from the defaults, so that a new option doesn't change the hash of settings.

    Whoever changes a default must state the old value in the plans that were run with it.
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
