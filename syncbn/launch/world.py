"""Which rank of how many this process is, from torchrun, SLURM or neither, before torch is imported."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from syncbn.launch.run_id import is_srun_step


@dataclass(frozen=True)
class World:
    """This process among those of its run.

    Attributes:
        launcher: who started the processes: `"torchrun"`, `"srun"`, `"submitit"` on one machine, or `"python"` for a
            process on its own.
        rank: 0 to `world_size - 1`.
        local_rank: 0 to `local_world_size - 1`, on this node.
        world_size: the number of processes.
        local_world_size: the number of processes on this node.
        num_nodes: the number of nodes.
    """

    launcher: str
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    num_nodes: int


def current_world(environ: Mapping[str, str] = os.environ) -> World:
    """The world the launcher describes in `environ`. torchrun goes before SLURM: it may run inside a SLURM step."""
    if "TORCHELASTIC_RUN_ID" in environ:
        return World(
            "torchrun",
            rank=int(environ["RANK"]),
            local_rank=int(environ["LOCAL_RANK"]),
            world_size=int(environ["WORLD_SIZE"]),
            local_world_size=int(environ["LOCAL_WORLD_SIZE"]),
            num_nodes=int(environ["GROUP_WORLD_SIZE"]),  # of this rendezvous: elastic jobs change it
        )
    if environ.get("SUBMITIT_EXECUTOR") == "local":  # launcher=local, wherever that was typed
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
    """`trainer.devices` and `trainer.num_nodes` with "auto" replaced by what the launcher started.

    Without a launcher, "auto" devices stay "auto" and one node is assumed.

    Raises:
        ValueError: the trainer's numbers aren't those of the launcher. Each rank would train alone, or wait for ranks
            that never come.
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


def _flags(launcher: str, devices: int, nodes: int) -> str:
    if launcher == "torchrun":
        return f"torchrun --nnodes {nodes} --nproc-per-node {devices}"
    if launcher.startswith("launcher="):
        return f"hydra.launcher.nodes={nodes} hydra.launcher.tasks_per_node={devices}"
    return f"srun --nodes {nodes} --ntasks-per-node {devices}"
