"""Start of the ranks that a config requires without a launcher: `python` acts as `torchrun`."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from syncbn.launch import stop
from syncbn.launch.world import World

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


def ranks_to_start(trainer: Mapping[str, Any], world: World) -> int:
    """Number of processes to start for a trainer's config; 1 if this process is all or one of them.

    `devices: auto` with a distributed strategy means one per GPU, or 2 on the CPU.

    Raises:
        ValueError: several nodes without a launcher, or a launcher with a strategy that starts its own ranks.
    """
    if world.launcher != "python":
        if _starts_by_itself(trainer["strategy"]):
            raise ValueError(
                f"{world.launcher} started {world.world_size} process(es), and this trainer would start ranks in each "
                "of them: take trainer=ddp, or leave the launcher out (syncbn train trainer=ddp_sim)"
            )
        return 1
    if trainer["num_nodes"] not in ("auto", 1):
        raise ValueError(
            f"trainer.num_nodes={trainer['num_nodes']}, but nothing started the processes of the other nodes: run this "
            f"on each node under torchrun --nnodes {trainer['num_nodes']} --rdzv-id=<name> ..., or under srun"
        )
    if _starts_by_itself(trainer["strategy"]):
        return 1
    if trainer["devices"] != "auto":
        return int(trainer["devices"])
    distributed = trainer["strategy"] != "auto"
    return _gpus(trainer["accelerator"]) or (2 if distributed and trainer["accelerator"] != "mps" else 1)


def run_under_torchrun(ranks: int, words: Sequence[str]) -> NoReturn:
    """Run `python <words>` on `ranks` processes, and exit with their exit code.

    The run id is passed in the environment. Lightning's own copies don't work in a Hydra sweep, where each job would
    start the whole sweep again; torchrun's ranks go through the sweep together.

    Args:
        ranks: number of processes.
        words: a script and its arguments, or "-m", a module and its arguments.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    from syncbn.launch.torchrun import read_variables

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_cores() // ranks)))
    names = [signum.name for signum in (*stop.SIGNALS, signal.SIGQUIT) if signum not in stop.ignored()]
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", ",".join(names))
    os.environ.setdefault("PET_SHUTDOWN_TIMEOUT", "110")  # seconds to save; torchrun's 30 may interrupt a large save
    read_variables()
    try:
        with stop.held():
            # On a free port: an older torchrun takes 29500, which another run may have.
            run(parse_args(["--standalone", f"--nproc-per-node={ranks}", "--no-python", *_python(), *words]))
    except ChildFailedError as error:  # the rank has said why, unless it was killed
        rank, first = _first_failure(error.failures)
        if first.exitcode == -signal.SIGKILL:
            killed = f"rank {rank} (process {first.pid}) was killed by SIGKILL"
            print(f"{killed}, by the system for want of memory perhaps, and the run ends", file=sys.stderr, flush=True)
        raise SystemExit(first.exitcode if first.exitcode > 0 else 128 - first.exitcode) from error
    except SignalException as error:  # Ctrl-C or SIGTERM, which has gone to the ranks too
        raise SystemExit(128 + error.sigval) from error
    raise SystemExit(0)


def _python() -> list[str]:
    """Command of this interpreter; it looks for modules in the current folder only if this process does.

    `python -m` does and `syncbn` doesn't: a user's logging.py there would shadow Python's.
    """
    looks_here = os.getcwd() in map(os.path.abspath, sys.path)
    return [sys.executable, "-u", *([] if looks_here else ["-P"])]


def _first_failure(failures: Mapping[int, "ProcessFailure"]) -> "tuple[int, ProcessFailure]":
    """The rank that failed first: of those in one second, which is all a time tells, a killed one.

    A SIGTERM was sent by torchrun to the remaining ranks.
    """
    return min(failures.items(), key=lambda one: (one[1].timestamp, _is_late(one[1].exitcode)))


def _is_late(exitcode: int) -> bool:
    return exitcode > 0 or exitcode == -signal.SIGTERM


def cpu_cores() -> int:
    """Number of cores this process may use; in a container or a SLURM job fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of_a_rank(threads: int | str, world: World) -> int:
    """CPU threads for a rank: the given number, or with "auto" its share of the node's cores."""
    return max(1, cpu_cores() // world.local_world_size) if threads == "auto" else int(threads)


def _starts_by_itself(strategy: Any) -> bool:
    """Whether the strategy starts its ranks from within the process."""
    if isinstance(strategy, Mapping):
        return strategy.get("start_method", "popen") != "popen"
    return str(strategy).endswith(("_spawn", "_fork", "_notebook"))


def _gpus(accelerator: str) -> int:
    if accelerator not in ("auto", "gpu", "cuda"):
        return 0
    import torch  # imported late: the checks before don't need it

    return torch.cuda.device_count()
