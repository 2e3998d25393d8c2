"""Rank and world size of this process, from torchrun, SLURM or neither, without importing torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from syncbn.launch.run_id import is_srun_step


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
    """World from the launcher's variables in `environ`. torchrun precedes SLURM, since it may run in a SLURM step."""
    if "TORCHELASTIC_RUN_ID" in environ:
        return World(
            "torchrun",
            rank=int(environ["RANK"]),
            local_rank=int(environ["LOCAL_RANK"]),
            world_size=int(environ["WORLD_SIZE"]),
            local_world_size=int(environ["LOCAL_WORLD_SIZE"]),
            num_nodes=int(environ["GROUP_WORLD_SIZE"]),  # of this rendezvous: it changes in elastic jobs
        )
    if environ.get("SUBMITIT_EXECUTOR") == "local":  # launcher=local, started from anywhere
        rank, tasks = int(environ["SUBMITIT_LOCAL_GLOBALID"]), int(environ["SUBMITIT_LOCAL_NTASKS"])
        return World("submitit", rank, local_rank=rank, world_size=tasks, local_world_size=tasks, num_nodes=1)
    if is_srun_step(dict(environ)):
        tasks, nodes = int(environ["SLURM_STEP_NUM_TASKS"]), int(environ["SLURM_STEP_NUM_NODES"])
        return World(
            "srun",
            rank=int(environ["SLURM_PROCID"]),
            local_rank=int(environ["SLURM_LOCALID"]),
            world_size=tasks,
            local_world_size=tasks // nodes,
            num_nodes=nodes,
        )
    return World("python", rank=0, local_rank=0, world_size=1, local_world_size=1, num_nodes=1)


def devices_and_nodes(devices: int | str, num_nodes: int | str, world: World) -> tuple[int | str, int]:
    """Values of `trainer.devices` and `trainer.num_nodes` with "auto" replaced by the launcher's.

    Without a launcher, "auto" devices stay "auto", on one node.

    Raises:
        ValueError: the trainer's numbers differ from the launcher's; each rank would train alone or wait forever.
    """
    if world.launcher == "python":
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


def _flags(launcher: str, devices: int, nodes: int) -> str:
    if launcher == "torchrun":
        return f"torchrun --nnodes {nodes} --nproc-per-node {devices}"
    if launcher.startswith("launcher="):
        return f"hydra.launcher.nodes={nodes} hydra.launcher.tasks_per_node={devices}"
    return f"srun --nodes {nodes} --ntasks-per-node {devices}"
