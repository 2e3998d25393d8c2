"""What the commands over `conf/` share: the check before anything heavy is imported, and Hydra after it."""

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from syncbn.cli.launchers import submitted_job, submitted_world, waiting
from syncbn.launch.faults import Fault
from syncbn.launch.leave import leave_together
from syncbn.launch.relaunch import ranks_to_start, run_under_torchrun
from syncbn.launch.run_id import ensure_run_id
from syncbn.launch.world import World, current_world, devices_and_nodes
from syncbn.run.check import conf_dir
from syncbn.run.compose import CommandLine, checked_configs
from syncbn.run.errors import UserError, fail
from syncbn.run.project import VARIABLE as PROJECT
from syncbn.run.project import find_project


def run_with_hydra(job: Callable[[DictConfig, World], None], config_name: str) -> None:
    """Name the run, check the command line, start the ranks it asks for, and let Hydra call `job` for each config."""
    world = current_world()
    try:
        ensure_run_id(os.environ, sys.argv[1:])
        if (project := find_project()) is not None:
            os.environ[PROJECT] = str(project.root)  # for ranks and jobs that work in another folder
        plan = _checked_plan(sys.argv[1:], config_name, world)
    except (UserError, ValueError) as error:
        fail(str(error), prints=world.rank == 0, after_others=world.rank > 0)
    if plan.ranks > 1:
        run_under_torchrun(plan.ranks)
    sys.argv.append("hydra.output_subdir=null")  # the job writes .hydra, when nothing was wrong
    submits = plan.submitted is not None

    def guarded(config: DictConfig) -> None:  # in another process than this one, where a launcher runs it
        with submitted_job() if submits else nullcontext():
            _run(job, config, current_world())
            if submits:
                leave_together(current_world())

    with waiting(plan.submitted, plan.jobs) if plan.submitted else nullcontext():
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(guarded)()
    leave_together(world)


def _run(job: Callable[[DictConfig, World], None], config: DictConfig, world: World) -> None:
    try:
        job(config, world)
    except UserError as error:
        with suppress(OSError):  # a folder that holds something is a run's, and stays
            Path(HydraConfig.get().runtime.output_dir).rmdir()
        # A mistake on one rank only, a file missing on its node say, no other can tell.
        fail(f"rank {world.rank}: {error}" if world.rank else str(error), after_others=world.rank > 0)
    except Fault as fault:
        fail(str(fault), prints=world.rank == 0, after_others=world.rank > 0, code=1)


@dataclass(frozen=True)
class _Plan:
    """What a command line comes to.

    Attributes:
        ranks: the processes to start here.
        jobs: the number of its jobs.
        submitted: the ranks of each job, where a launcher starts them elsewhere.
    """

    ranks: int = 1
    jobs: int = 1
    submitted: World | None = None


def _checked_plan(argv: list[str], config_name: str, world: World) -> _Plan:
    args = get_args_parser().parse_args(argv)
    if args.config_dir and not Path(args.config_dir).is_dir():
        raise UserError(f"--config-dir {args.config_dir}: there is no such folder")
    if args.help or args.hydra_help or args.info or args.shell_completion or args.experimental_rerun:
        return _Plan()
    line = CommandLine(
        overrides=args.overrides,
        multirun=args.multirun,
        config_name=args.config_name or config_name,
        extra_dirs=(Path(args.config_dir).resolve(),) if args.config_dir else (),
    )
    configs = checked_configs(line)
    if args.cfg:
        return _Plan()
    submitted = submitted_world(line, world)
    for config in configs:
        devices_and_nodes(config["trainer"]["devices"], config["trainer"]["num_nodes"], submitted or world)
    wanted = {ranks_to_start(config["trainer"], submitted or world) for config in configs}
    if len(wanted) > 1:
        raise UserError(f"the jobs of one sweep run on the same processes, got {sorted(wanted)}: sweep them separately")
    for config in configs:
        _check_output_root(Path(config["output_root"]))
    return _Plan(wanted.pop(), len(configs), submitted)


def _check_output_root(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        raise UserError(
            f"can't write to output_root={root} ({error.strerror}): set output_root=<folder>, or export "
            "SYNCBN_OUTPUT_ROOT=<folder>"
        ) from error
