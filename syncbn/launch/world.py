"""Rank and world size of this process, from torchrun, SLURM or neither, without importing torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from syncbn.launch.run_id import is_srun_step

# Numbers of processes by launchers that aren't known here: Open MPI, MPICH (and Intel), MVAPICH, LSF's jsrun, Horovod.
# The last is torch's `env://`, which DeepSpeed and people set by hand; without RANK it is Lightning's, in processes
# that it starts itself.
_OTHERS = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "JSM_NAMESPACE_SIZE",
    "HOROVOD_SIZE",
    "WORLD_SIZE",
)


@dataclass(frozen=True)
class World:
    """Rank of this process and the number of ranks.

    Attributes:
        launcher: launcher of the processes: `"torchrun"`, `"srun"`, `"submitit"` on one machine, or `"python"` for a
            single process.
        rank: 0 to `world_size - 1`.
        local_rank: 0 to `local_world_size - 1`, on this node.
        world_size: number of processes.
        local_world_size: number of processes on this node.
        num_nodes: number of nodes.
    """

    launcher: str
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    num_nodes: int


def current_world(environ: Mapping[str, str] = os.environ) -> World:
    """World from the launcher's variables in `environ`. torchrun precedes SLURM, since it may run in a SLURM step.

    Raises:
        ValueError: a launcher's variables are there in part, as in a container that was given some of them.
    """

    def number(name: str) -> int:
        if environ.get(name, "").isdigit():
            return int(environ[name])
        raise ValueError(
            f"a launcher's variables are incomplete here, {name} is {environ.get(name)!r}: pass the launcher's whole "
            "environment on, into a container too, or none of it"
        )

    if "TORCHELASTIC_RUN_ID" in environ:
        return World(
            "torchrun",
            rank=number("RANK"),
            local_rank=number("LOCAL_RANK"),
            world_size=number("WORLD_SIZE"),
            local_world_size=number("LOCAL_WORLD_SIZE"),
            num_nodes=number("GROUP_WORLD_SIZE"),  # of this rendezvous: it changes in elastic jobs
        )
    if environ.get("SUBMITIT_EXECUTOR") == "local":  # launcher=local, started from anywhere
        rank, tasks = number("SUBMITIT_LOCAL_GLOBALID"), number("SUBMITIT_LOCAL_NTASKS")
        return World("submitit", rank, local_rank=rank, world_size=tasks, local_world_size=tasks, num_nodes=1)
    if is_srun_step(dict(environ)):
        tasks, nodes = number("SLURM_STEP_NUM_TASKS"), number("SLURM_STEP_NUM_NODES")
        return World(
            "srun",
            rank=number("SLURM_PROCID"),
            local_rank=number("SLURM_LOCALID"),
            world_size=tasks,
            local_world_size=tasks // nodes,
            num_nodes=nodes,
        )
    return World("python", rank=0, local_rank=0, world_size=1, local_world_size=1, num_nodes=1)


def devices_and_nodes(
    devices: int | str, num_nodes: int | str, world: World, environ: Mapping[str, str] = os.environ
) -> tuple[int | str, int]:
    """Values of `trainer.devices` and `trainer.num_nodes` with "auto" replaced by the launcher's.

    Without a launcher, "auto" devices stay "auto", on one node.

    Raises:
        ValueError: the trainer's numbers differ from the launcher's, or another launcher started several processes;
            each rank would train alone or wait forever.
    """
    if world.launcher == "python":
        _check_no_other_launcher(environ)
        _check_torchrun_is_not_missing(environ)
        return devices, 1 if num_nodes == "auto" else int(num_nodes)
    got = (
        world.local_world_size if devices == "auto" else int(devices),
        world.num_nodes if num_nodes == "auto" else int(num_nodes),
    )
    if got != (world.local_world_size, world.num_nodes):
        raise ValueError(
            f"{world.launcher} started {world.world_size} process(es), {world.local_world_size} on each of "
            f"{world.num_nodes} node(s), but trainer.devices={devices} and trainer.num_nodes={num_nodes}: "
            f"add trainer=ddp and leave both to the launcher, or start {got[0] * got[1]} process(es) "
            f"({_flags(world.launcher, *got)})"
        )
    return got


def check_tasks(devices: int | str, world: World, environ: Mapping[str, str] = os.environ) -> None:
    """Check that srun started as many tasks as it was asked for on a node, where the trainer takes what it gets.

    `--ntasks-per-node` beside a smaller `--ntasks` is a maximum, and a step has it from its job, too: the run would
    have fewer ranks than its user reads there.

    Raises:
        ValueError: it started fewer.
    """
    wanted = environ.get("SLURM_NTASKS_PER_NODE", "")
    if world.launcher != "srun" or devices != "auto" or not wanted.isdigit() or int(wanted) <= world.local_world_size:
        return
    raise ValueError(
        f"srun started {world.world_size} task(s) on {world.num_nodes} node(s), where --ntasks-per-node={wanted} asks "
        f"for {int(wanted) * world.num_nodes}: start as many, srun --ntasks={int(wanted) * world.num_nodes}, or say "
        f"that {world.world_size} is meant, trainer.devices={world.local_world_size}"
    )


def _check_no_other_launcher(environ: Mapping[str, str]) -> None:
    for name in _OTHERS:
        processes = environ.get(name, "")
        if not processes.isdigit() or int(processes) < 2 or (name == "WORLD_SIZE" and "RANK" not in environ):
            continue
        raise ValueError(
            f"{name}={processes}: another launcher than torchrun or srun started {processes} processes, and each would "
            "train alone; let it start one process a node, each torchrun --nnodes <nodes> --nproc-per-node <ranks> "
            "--node-rank <number> --master-addr <first node> --rdzv-id <name> -m syncbn train trainer=ddp; where that "
            f"is a variable left over, unset {name}"
        )


def _check_torchrun_is_not_missing(environ: Mapping[str, str]) -> None:
    nodes = environ.get("PET_NNODES", "").rpartition(":")[2]  # or "<fewest>:<most>"
    if nodes.isdigit() and int(nodes) > 1:
        raise ValueError(
            f"PET_NNODES={environ['PET_NNODES']}: torchrun's settings are for several nodes, as in Kubeflow's pods, "
            "but it hasn't started this process, and each node would train alone; start torchrun -m syncbn train "
            "trainer=ddp on each, which reads them; where that is a variable left over, unset PET_NNODES"
        )


def _flags(launcher: str, devices: int, nodes: int) -> str:
    if launcher == "torchrun":
        return f"torchrun --nnodes {nodes} --nproc-per-node {devices}"
    if launcher.startswith("launcher="):
        return f"hydra.launcher.nodes={nodes} hydra.launcher.tasks_per_node={devices}"
    return f"srun --nodes {nodes} --ntasks-per-node {devices}"
