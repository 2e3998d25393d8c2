"""launcher=slurm and launcher=local: refusals before a job is submitted, and jobs on this machine.

tests/slurm tests a real cluster.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from syncbn.launch.stop import Stopped
from syncbn.launch.world import World, current_world, devices_and_nodes
from syncbn.run import sweeps
from syncbn.run.command_line import CommandLine
from syncbn.run.compose import Jobs, jobs_of
from syncbn.run.errors import UserError
from syncbn.run.launchers import submitted_world
from tests.cli.conftest import SHORT, run_script

ALONE = World("python", rank=0, local_rank=0, world_size=1, local_world_size=1, num_nodes=1)


@pytest.fixture(autouse=True)
def _run_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")


def jobs(*overrides: str, multirun: bool = False) -> Jobs:
    return jobs_of(CommandLine(overrides, multirun=multirun))


def test_the_ranks_of_a_job_are_the_launchers_tasks() -> None:
    found = jobs("launcher=slurm", "hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=4", "norm=sync,layer")
    assert found.is_sweep
    assert submitted_world(found.hydra, ALONE) == World("launcher=slurm", 0, 0, 8, 4, 2)
    assert len(found.configs) == 2  # a launcher is for several jobs, without -m too
    assert submitted_world(jobs("norm=sync,layer", multirun=True).hydra, ALONE) is None
    assert not jobs().is_sweep


def test_a_trainer_of_other_ranks_is_refused_before_the_job_waits_in_a_queue() -> None:
    submitted = submitted_world(jobs("launcher=slurm", "hydra.launcher.tasks_per_node=2").hydra, ALONE)
    assert submitted is not None
    with pytest.raises(ValueError, match=r"launcher=slurm started 2 .* add trainer=ddp .*launcher.tasks_per_node=1"):
        devices_and_nodes(1, 1, submitted)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("launcher=slrum", r"launcher=slrum: no such choice; did you mean 'slurm'\? allowed: local, slurm"),
        ("launcher=slurm hydra.launcher.nodess=2", r"hydra.launcher.nodess: no such key; did you mean 'nodes'\?"),
        ("launcher=slurm hydra.launcher.nodes=0", r"hydra.launcher.nodes: expected an integer at least 1, got 0"),
        ("launcher=local hydra.launcher.nodes=2", r"hydra.launcher.nodes: expected 1, got 2"),
        ("launcher=slurm hydra.launcher.nodes=two", r"hydra.launcher.nodes=two.* could not be converted to Integer"),
    ],
)
def test_a_mistake_is_answered_with_what_is_allowed(overrides: str, message: str) -> None:
    def check() -> None:
        submitted_world(jobs(*overrides.split()).hydra, ALONE)

    with pytest.raises(UserError, match=message):
        check()


def test_a_launcher_under_a_launcher_is_refused() -> None:
    with pytest.raises(UserError, match=r"launcher=local starts ranks itself, but torchrun has started this process"):
        submitted_world(jobs("launcher=local").hydra, World("torchrun", 0, 0, 2, 2, 1))


@pytest.mark.parametrize("overrides", [["launcher=slurm"], ["hydra/launcher=submitit_local", "-m"]])
def test_without_submitit_it_says_what_to_install(overrides: list[str]) -> None:
    bare = (
        "import sys\n"
        "sys.modules['hydra_plugins'] = None\n"  # no plugin of Hydra is installed
        f"sys.argv = ['syncbn', 'train', *{overrides}]\n"
        "from syncbn.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'pip install "syncbn[slurm]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_task_of_a_local_job_is_a_rank() -> None:
    environ = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1"}
    in_a_step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "1"}
    assert current_world({**in_a_step, **environ}) == World("submitit", 1, 1, 2, 2, 1)


@pytest.mark.slow
@pytest.mark.distributed
def test_jobs_on_this_machine_run_at_once_and_one_that_fails_leaves_the_other_alone(tmp_path: Path) -> None:
    arguments = ["launcher=local", "trainer=ddp", "hydra.launcher.tasks_per_node=2", "norm=group", "norm.groups=4,3"]
    done = run_script(tmp_path, "train", *arguments, "run_id=sweep", "test=false", "callbacks=checkpoint", *SHORT)
    assert done.code == 1
    assert "launcher=local: 2 job(s) of 2 rank(s) each" in done.out
    assert "a job ended with exit code 2; its log is in outputs/sweep/.submitit" in done.err
    assert done.err.splitlines()[-1].startswith("error: 1 of 2 job(s) failed: 1 in ")
    assert done.err.splitlines()[-1].endswith("sweep/1: exit code 2")
    assert "Traceback" not in done.err
    sweep = tmp_path / "outputs" / "sweep"
    assert {path.name for path in (sweep / "0" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert not (sweep / "1").exists()
    logs = [file.read_text() for file in sweep.rglob("*_log.out")]
    assert len(logs) == 4
    assert sum("error: groups must divide the 4 channels, got 3" in text for text in logs) == 1
    assert sum("processes:     2 on cpu" in text for text in logs) == 1


@pytest.mark.parametrize("end", [None, 0, 3, "killed", "stopped", "failed"])
def test_how_a_job_ended_is_noted_for_the_process_that_waits(
    end: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed job can't say it itself, and one that SLURM stops may be requeued, and end well."""
    hydra = OmegaConf.create({"job": {"num": 4}, "runtime": {"output_dir": "outputs/sweep/4"}})
    monkeypatch.setattr(sweeps.HydraConfig, "get", lambda: hydra)
    ends = {"stopped": Stopped(signal.SIGTERM), "failed": RuntimeError()}
    if end == "killed":
        job = multiprocessing.get_context("fork").Process(target=_kill_a_job, args=(tmp_path,))
        job.start()
        job.join()
        assert job.exitcode == -signal.SIGKILL
    else:
        with suppress(SystemExit, RuntimeError), sweeps.noted(tmp_path):
            if end is not None:
                raise ends.get(end, SystemExit(end))
    known = {
        3: "exit code 3",
        "failed": "exit code 1",
        "killed": "killed, or cancelled",
        "stopped": "killed, or cancelled",
    }
    assert sweeps.failed_notes(tmp_path) == ({"4 in outputs/sweep/4": known[end]} if end in known else {})
    sweeps.forget_failed(tmp_path)
    assert not [*tmp_path.iterdir()]


def _kill_a_job(folder: Path) -> None:
    with sweeps.noted(folder):
        os.kill(os.getpid(), signal.SIGKILL)
