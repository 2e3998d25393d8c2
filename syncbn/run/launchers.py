"""`launcher=slurm` and `launcher=local`: jobs that run outside the sweep's process."""

import os
import random
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from syncbn.launch import stop
from syncbn.launch.leave import ends_at_once
from syncbn.launch.secrets import guard_the_screen
from syncbn.launch.stop import Stopped
from syncbn.launch.world import World, current_world
from syncbn.norm.core.options import mistakes
from syncbn.run.errors import UserError
from syncbn.run.options import LAUNCHERS
from syncbn.run.sweeps import failed_notes, forget_failed, list_failed, noted

_NOTES = ".submitit"


def submitted_world(hydra: DictConfig, world: World) -> World | None:
    """Ranks that a sweep's launcher will start for each job; None if jobs run in this process.

    Args:
        hydra: Hydra's own config.
        world: rank of this process and number of ranks under its own launcher.

    Raises:
        UserError: a launcher under a launcher, or an invalid setting.
    """
    node = OmegaConf.to_container(hydra.launcher, resolve=True)
    assert isinstance(node, dict)
    schema = LAUNCHERS.get(node["_target_"])
    if schema is None:
        return None
    name = f"launcher={hydra.runtime.choices['hydra/launcher'].removeprefix('submitit_')}"
    if world.launcher != "python":
        raise UserError(f"{name} starts ranks itself, but {world.launcher} has started this process: leave one out")
    if found := mistakes({str(key): value for key, value in node.items()}, schema, "hydra.launcher"):
        raise UserError("\n       ".join(found))
    nodes, tasks = node["nodes"], node["tasks_per_node"]
    return World(name, 0, 0, world_size=nodes * tasks, local_world_size=tasks, num_nodes=nodes)


@contextmanager
def waiting(submitted: World, jobs: int, folder: Path) -> Iterator[None]:
    """Wait for submitted jobs, and list those that failed: Ctrl-C ends only the waiting.

    Args:
        submitted: ranks of each job.
        jobs: number of jobs.
        folder: of the sweep.
    """
    stop.restore()  # there is nothing to save here
    forget_failed(folder / _NOTES)
    ranks = f"{submitted.world_size} rank(s) each" if submitted.world_size > 1 else "one rank each"
    print(f"{submitted.launcher}: {jobs} job(s) of {ranks}; this command waits for them", flush=True)
    try:
        yield
    except KeyboardInterrupt:
        print("\nno longer waiting; jobs in SLURM go on (squeue, scancel)", file=sys.stderr)
        raise SystemExit(130) from None
    except SystemExit:  # Hydra's, after all have ended, for the first that failed
        if ends := failed_notes(folder / _NOTES):
            list_failed(ends, jobs)
        raise


@contextmanager
def submitted_job() -> Iterator[None]:
    """Run a rank of a submitted job with its own signals and exit code, and report errors to the waiting process, too.

    Hydra and submitit would pass an exception by pickle, without its traceback, and exit with code 0.
    """
    guard_the_screen()
    log = Path(HydraConfig.get().launcher.submitit_folder).parent
    if current_world().launcher == "submitit":
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)  # rendezvous of the ranks
        # Below those that systems give to connections, of which submitit's own choice may be one in use.
        os.environ["MASTER_PORT"] = str(random.Random(JobEnvironment().job_id).randint(20_000, 29_999))
    try:
        with ends_at_once(), noted(log):
            stop.install()
            yield
    except Stopped as stopped:
        if current_world().launcher == "srun":  # the job may be requeued: no result yet
            raise
        raise CompactHydraException(f"stopped by {signal.Signals(stopped.signum).name}") from stopped
    except SystemExit as end:
        if end.code:
            raise CompactHydraException(f"a job ended with exit code {end.code}; its log is in {log}") from end
    except Exception as error:
        traceback.print_exc()
        raise CompactHydraException(f"{type(error).__name__}: {error}; the log is in {log}") from error
