"""Rank and world from the launcher's variables, and refusal of a trainer that contradicts them."""

from typing import Any

import pytest

from syncbn.launch.relaunch import ranks_to_start, threads_of_a_rank
from syncbn.launch.world import World, check_tasks, current_world, devices_and_nodes

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x",
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "6",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "3",
}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
}
ALONE = World("python", rank=0, local_rank=0, world_size=1, local_world_size=1, num_nodes=1)


def test_the_world_is_torchruns_or_sruns_or_one_process() -> None:
    assert current_world(TORCHRUN) == World("torchrun", 5, 1, 6, 2, 3)
    assert current_world(SRUN) == World("srun", 3, 1, 4, 2, 2)
    assert current_world({**SRUN, **TORCHRUN}).launcher == "torchrun"  # torchrun inside a SLURM step
    assert current_world({}) == ALONE
    # A batch script and salloc's shell have the job's variables, but srun started neither.
    assert current_world({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == ALONE
    assert current_world({**SRUN, "SLURM_STEP_ID": str(0xFFFFFFFA)}) == ALONE


@pytest.mark.parametrize(
    ("world", "missing"), [(SRUN, "SLURM_STEP_NUM_NODES"), (SRUN, "SLURM_PROCID"), (TORCHRUN, "LOCAL_WORLD_SIZE")]
)
def test_a_part_of_a_launchers_variables_is_refused_by_name(world: dict[str, str], missing: str) -> None:
    with pytest.raises(ValueError, match=rf"incomplete here, {missing} is None: pass the launcher's whole environment"):
        current_world({name: value for name, value in world.items() if name != missing})


@pytest.mark.parametrize(
    "others",
    [
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_SIZE": "4", "PMI_RANK": "1"},
        {"MV2_COMM_WORLD_SIZE": "2"},
        {"JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_RANK": "0"},
        {"HOROVOD_SIZE": "4", "HOROVOD_RANK": "3"},
        {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"},
    ],
    ids=["Open MPI", "MPICH", "MVAPICH", "LSF", "Horovod", "by hand"],
)
def test_processes_of_another_launcher_do_not_train_each_alone(others: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"SIZE=[24]: another launcher .* each would train alone.*torchrun --nnodes"):
        devices_and_nodes("auto", "auto", current_world(others), others)
    for ours in (TORCHRUN, SRUN):  # started by that launcher in turn
        devices_and_nodes("auto", "auto", current_world({**others, **ours}), {**others, **ours})


@pytest.mark.parametrize(
    "alone",
    [
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"WORLD_SIZE": "2", "LOCAL_RANK": "1"},  # Lightning's own second process
        {"WORLD_SIZE": "", "RANK": ""},
    ],
)
def test_one_process_of_another_launcher_trains(alone: dict[str, str]) -> None:
    assert devices_and_nodes("auto", "auto", current_world(alone), alone) == ("auto", 1)


@pytest.mark.parametrize("nodes", ["2", "1:4"])
def test_a_pod_whose_torchrun_is_missing_does_not_train_alone(nodes: str) -> None:
    """Kubeflow gives every pod torchrun's settings, whatever its command."""
    pod = {"PET_NNODES": nodes, "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": "0"}
    with pytest.raises(
        ValueError, match=rf"PET_NNODES={nodes}: .*each node would train alone.* start torchrun -m syncbn"
    ):
        devices_and_nodes("auto", "auto", current_world(pod), pod)
    devices_and_nodes("auto", "auto", current_world({**pod, **TORCHRUN}), {**pod, **TORCHRUN})


@pytest.mark.parametrize("nodes", ["", "1", "1:1"])
def test_a_pod_of_one_node_does(nodes: str) -> None:
    assert devices_and_nodes("auto", "auto", ALONE, {"PET_NNODES": nodes}) == ("auto", 1)


def test_auto_takes_devices_and_nodes_from_the_launcher() -> None:
    assert devices_and_nodes("auto", "auto", current_world(TORCHRUN)) == (2, 3)
    assert devices_and_nodes(2, 3, current_world(TORCHRUN)) == (2, 3)
    assert devices_and_nodes("auto", "auto", ALONE) == ("auto", 1)


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (2, 1), (1, 3)])
def test_another_world_than_the_launchers_is_refused_with_the_flag_to_set(devices: int, nodes: int) -> None:
    with pytest.raises(ValueError, match=rf"add trainer=ddp.*torchrun --nnodes {nodes} --nproc-per-node {devices}"):
        devices_and_nodes(devices, nodes, current_world(TORCHRUN))
    with pytest.raises(ValueError, match=r"srun started 4 process.*--ntasks-per-node"):
        devices_and_nodes(devices, 1, current_world(SRUN))


def test_fewer_tasks_than_a_node_was_to_have_are_refused_in_a_line_that_leads_to_no_other() -> None:
    alone = current_world({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"})
    asked = {"SLURM_NTASKS_PER_NODE": "2"}
    with pytest.raises(ValueError, match=r"srun started 1 task.*--ntasks=2, or .* trainer.devices=1$"):
        check_tasks("auto", alone, asked)
    check_tasks(1, alone, asked)  # the second remedy
    assert devices_and_nodes(1, "auto", alone) == (1, 1)
    check_tasks("auto", current_world(SRUN), asked)  # the first
    check_tasks("auto", alone, {"SLURM_NTASKS_PER_NODE": "1"})
    check_tasks("auto", alone, {})
    check_tasks("auto", ALONE, asked)  # a batch script


def trainer(**changes: Any) -> dict[str, Any]:
    return {"devices": 1, "num_nodes": 1, "strategy": "auto", "accelerator": "cpu", **changes}


@pytest.mark.parametrize(
    ("changes", "ranks"),
    [
        ({}, 1),
        ({"devices": "auto"}, 1),
        ({"devices": 4}, 4),
        ({"devices": "auto", "strategy": "ddp", "num_nodes": "auto"}, 2),
        ({"devices": "auto", "strategy": {"_target_": "syncbn.training.ddp"}}, 2),
        ({"devices": 3, "strategy": {"_target_": "syncbn.training.ddp", "start_method": "spawn"}}, 1),
        ({"devices": 3, "strategy": "ddp_spawn"}, 1),
    ],
)
def test_without_a_launcher_the_trainers_ranks_are_started(changes: dict[str, Any], ranks: int) -> None:
    assert ranks_to_start(trainer(**changes), ALONE) == ranks
    if "spawn" in str(changes):
        with pytest.raises(ValueError, match=r"torchrun started 6 process\(es\), and this trainer would start ranks"):
            ranks_to_start(trainer(**changes), current_world(TORCHRUN))
    else:
        assert ranks_to_start(trainer(**changes), current_world(TORCHRUN)) == 1


def test_several_nodes_need_a_launcher() -> None:
    with pytest.raises(ValueError, match="torchrun --nnodes 2 --rdzv-id"):
        ranks_to_start(trainer(num_nodes=2), ALONE)


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncbn.launch.relaunch.cpu_cores", lambda: 8)
    assert threads_of_a_rank("auto", current_world(TORCHRUN)) == 4
    assert threads_of_a_rank("auto", ALONE) == 8
    assert threads_of_a_rank(3, ALONE) == 3
