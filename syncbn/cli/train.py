"""Train a network, or several with -m: any norm, model and data of the configs, on one or many processes.

Turns the command line into jobs; `syncbn.run.fit` runs each.
"""

import os
import sys
import tempfile
from argparse import Namespace
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from syncbn import cli
from syncbn.launch import stop
from syncbn.launch.faults import Fault
from syncbn.launch.leave import ends_at_once, leave_together
from syncbn.launch.relaunch import ranks_to_start, run_under_torchrun
from syncbn.launch.run_id import VARIABLE as RUN_ID
from syncbn.launch.run_id import ensure_run_id
from syncbn.launch.world import World, check_tasks, current_world, devices_and_nodes
from syncbn.run.check import conf_dir
from syncbn.run.command_line import CommandLine, read, unchecked_help
from syncbn.run.compose import SWEEPER, Jobs, jobs_of
from syncbn.run.errors import UserError, fail
from syncbn.run.launchers import submitted_job, submitted_world, waiting
from syncbn.run.project import VARIABLE as PROJECT
from syncbn.run.project import find_project
from syncbn.run.sweeps import Sweep, end_of, run_on_ranks

OUTPUT_ROOT = "SYNCBN_OUTPUT_ROOT"  # read by conf/train.yaml
_READ = ("model.weights", *(f"data.{key}" for key in ("root", "folder", "data_dir", "cache_dir")))  # paths to read
_HERE = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # runs the jobs in this process


def main() -> None:
    """Name the run, check the command line, start its ranks, and let Hydra run its jobs."""
    with ends_at_once():
        stop.install()
        world = current_world()
        if not os.environ.get(OUTPUT_ROOT):
            os.environ.pop(OUTPUT_ROOT, None)  # an empty variable is an unset one
        try:
            line, flags = read(sys.argv[1:])
            ensure_run_id(os.environ, line.overrides)
            if (project := find_project()) is not None:
                os.environ[PROJECT] = str(project.root)  # for ranks and jobs in other working directories
            plan = _plan(line, flags, world)
        except (UserError, ValueError) as error:
            fail(str(error), prints=world.rank == 0, after_others=world.rank > 0)
        if plan.ranks > 1:
            words = ["-m", "syncbn", "train", *sys.argv[1:]]
            if plan.independent:
                run_on_ranks(plan.ranks, words, plan.jobs)
            run_under_torchrun(plan.ranks, words)
        _run_jobs(plan, flags)
        leave_together(world)


@dataclass(frozen=True)
class _Plan:
    """Plan of a command line.

    Attributes:
        overrides: overrides for Hydra.
        ranks: processes to start here.
        jobs: number of jobs.
        independent: whether there are several, and none needs another's result.
        submitted: ranks of each job, if a launcher starts them elsewhere.
        folder: of the sweep.
    """

    overrides: tuple[str, ...]
    ranks: int = 1
    jobs: int = 1
    independent: bool = False
    submitted: World | None = None
    folder: Path = Path()


def _plan(line: CommandLine, flags: Namespace, world: World) -> _Plan:
    if flags.experimental_rerun:
        raise UserError(
            "--experimental-rerun reads a pickle, which may run anything; a run's config is given again by "
            "--config-path outputs/<run_id>/.hydra --config-name config run_id=<another>"
        )
    shows = flags.help or flags.hydra_help or flags.info or flags.cfg
    if flags.shell_completion or (shows and line == CommandLine([])):
        return _Plan(tuple(line.overrides))
    jobs = jobs_of(line)
    overrides = tuple(jobs.line.overrides)
    if shows:
        return _Plan(overrides)
    submitted = submitted_world(jobs.hydra, world) if jobs.is_sweep else None
    for config in jobs.configs:
        check_tasks(config["trainer"]["devices"], world)
        devices_and_nodes(config["trainer"]["devices"], config["trainer"]["num_nodes"], submitted or world)
    wanted = {ranks_to_start(config["trainer"], submitted or world) for config in jobs.configs}
    if len(wanted) > 1:
        raise UserError(f"the jobs of one sweep run on the same processes, got {sorted(wanted)}: sweep them separately")
    ranks = wanted.pop()
    if jobs.is_sweep and not submitted and ranks > 1 and jobs.hydra.launcher._target_ != _HERE:
        raise UserError(
            f"hydra/launcher={jobs.hydra.runtime.choices['hydra/launcher']} starts one process a job, and each job "
            f"asks for {ranks}: leave it out, or take launcher=local"
        )
    _check_sweeper(jobs, max(ranks, world.world_size))
    for config in jobs.configs:
        _check_output_root(Path(config["output_root"]))
    os.environ[RUN_ID] = jobs.configs[0]["run_id"]  # a primary config may set it
    # The job writes .hydra itself, once all checks have passed.
    overrides = (*_folders(jobs.hydra), *overrides, "hydra.output_subdir=null")
    count = len(jobs.configs)
    independent = jobs.is_sweep and jobs.hydra.sweeper._target_ == SWEEPER and count > 1
    folder = Path(jobs.configs[0]["output_root"], jobs.configs[0]["run_id"])
    return _Plan(overrides, ranks, count, independent, submitted, folder)


def _check_sweeper(jobs: Jobs, ranks: int) -> None:
    """Refuse a sweeper that draws values without a seed: each rank asks it, and all must draw the same."""
    if not jobs.is_sweep or ranks == 1 or jobs.hydra.sweeper._target_ == SWEEPER:
        return
    keys = [key for key in ("hydra.sweeper.sampler.seed", "hydra.sweeper.seed") if _has(jobs.hydra, key)]
    if keys and all(OmegaConf.select(jobs.hydra, key.removeprefix("hydra.")) is None for key in keys):
        raise UserError(
            f"each of {ranks} ranks draws the values of a job by itself: add {keys[0]}=<n>, the same for all"
        )


def _has(hydra: DictConfig, key: str) -> bool:
    *above, name = key.removeprefix("hydra.").split(".")
    return name in (OmegaConf.select(hydra, ".".join(above)) or ())


def _folders(hydra: DictConfig) -> list[str]:
    """Overrides for our folders, where a primary config leaves Hydra's: each rank would name those by its own clock."""
    if "${now:" not in str(OmegaConf.to_container(hydra.run, resolve=False)):
        return []
    quiet = [
        group for group in ("hydra/job_logging", "hydra/hydra_logging") if hydra.runtime.choices[group] == "default"
    ]
    return [
        *(f"{group}=none" for group in quiet),
        "hydra.run.dir=${output_root}/${run_id}",
        "hydra.sweep.dir=${output_root}/${run_id}",
        "hydra.sweep.subdir=${hydra.job.num}",
    ]


def _check_output_root(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        raise UserError(
            f"can't write to output_root={root} ({error.strerror}): set output_root=<folder>, or export "
            "SYNCBN_OUTPUT_ROOT=<folder>"
        ) from error


def _run_jobs(plan: _Plan, flags: Namespace) -> None:
    submits, sweep = plan.submitted is not None, Sweep(plan.jobs)

    def job(config: DictConfig) -> float | None:  # where a launcher is used, runs in another process
        result = None
        if sweep.is_done():
            return None
        with submitted_job() if submits else sweep.kept():
            result = _job(config, current_world())
            if submits:
                leave_together(current_world())
        return result

    version.setbase("1.3")
    flags.overrides = list(plan.overrides)
    with unchecked_help(), waiting(plan.submitted, plan.jobs, plan.folder) if plan.submitted else nullcontext():
        _run_hydra(flags, get_args_parser(), job, str(conf_dir()), "train")
    end_of(sweep.codes, plan.jobs)


def _job(config: DictConfig, world: World) -> float | None:
    """Run one job in Hydra's folder; returns the metric for a sweeper that optimizes it."""
    from syncbn.run.fit import train  # imports torch and Lightning; the checks don't need them

    hydra: Any = HydraConfig.get()
    config.paths.output_dir = hydra.runtime.output_dir
    if hydra.job.chdir:  # the job works in its folder, and its paths are those of where the command was typed
        config.output_root = str(Path(hydra.runtime.cwd, config.output_root))
        if config.resume not in (None, "auto"):
            config.resume = str(Path(hydra.runtime.cwd, config.resume))
        for key in _READ:
            path = OmegaConf.select(config, key)
            if isinstance(path, str) and (there := Path(hydra.runtime.cwd, path)).exists():
                OmegaConf.update(config, key, str(there))
    if hydra.mode is RunMode.MULTIRUN:
        config.run_id = f"{config.run_id}-{hydra.job.num}"
    try:
        return train(config, world, hydra)
    except UserError as error:
        with suppress(OSError):  # a folder that isn't empty is a run's, and is kept
            Path(config.paths.output_dir).rmdir()
        # Other ranks can't report a mistake on one rank only, such as a file missing on its node.
        fail(f"rank {world.rank}: {error}" if world.rank else str(error), after_others=world.rank > 0)
    except Fault as fault:
        fail(str(fault), prints=world.rank == 0, after_others=world.rank > 0, code=1)


if __name__ == "__main__":  # python -m syncbn.cli.train
    cli.run("train")
