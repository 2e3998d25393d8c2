"""A run has one id on all ranks, and two runs never share one."""

import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from syncbn.launch.run_id import VARIABLE, ensure_run_id

SAY_ID = "from syncbn.launch.run_id import ensure_run_id\nprint(ensure_run_id())"


def test_the_users_choice_goes_first_and_is_left_for_child_processes() -> None:
    environ = {VARIABLE: "mine", "SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "x"}
    assert ensure_run_id(environ) == "mine"
    fresh: dict[str, str] = {}
    assert ensure_run_id(fresh) == fresh[VARIABLE] == ensure_run_id(fresh)


@pytest.mark.parametrize("word", ["run_id=42", "run_id='42'"])
def test_a_number_is_a_name(word: str) -> None:
    assert ensure_run_id({}, [word]) == "42"


@pytest.mark.parametrize("bad", ["../up", "a/b", "a b", "", ".hidden", "x" * 101])
def test_an_id_that_could_leave_the_output_folder_is_refused(bad: str) -> None:
    environ = {VARIABLE: bad}
    if bad:
        with pytest.raises(ValueError, match="a run id is"):
            ensure_run_id(environ)
    else:
        assert ensure_run_id(environ)  # an empty variable is an unset one


def test_a_slurm_job_keeps_its_id_when_it_is_requeued_and_steps_of_an_allocation_differ() -> None:
    batch = {"SLURM_JOB_ID": "42", "ENVIRONMENT": "BATCH"}
    assert ensure_run_id({**batch, "SLURM_STEP_ID": "0"}) == "slurm-42"
    assert ensure_run_id({**batch, "SLURM_STEP_ID": "3", "SLURM_RESTART_COUNT": "1"}) == "slurm-42"
    task = {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "2"}
    assert ensure_run_id({**batch, **task}) == "slurm-40-2"
    assert ensure_run_id({"SLURM_JOB_ID": "42", "SLURM_STEP_ID": "1"}) == "slurm-42-1"
    shell = {"SLURM_JOB_ID": "42", "SLURM_STEP_ID": "4294967290"}  # salloc's interactive step: two commands, two runs
    assert ensure_run_id(dict(shell)) != ensure_run_id(dict(shell))


def test_torchruns_own_id_is_used_and_made_fit_for_a_folder() -> None:
    environ = {"TORCHELASTIC_RUN_ID": "my run/1", "GROUP_WORLD_SIZE": "2"}
    assert ensure_run_id(environ) == "torchrun-my-run-1"
    chosen = "0b5f3c1e-7f0c-4a3e-9a55-0d3f5a2b8c11"
    assert ensure_run_id({"TORCHELASTIC_RUN_ID": chosen, "GROUP_WORLD_SIZE": "2"}) == f"torchrun-{chosen}"


def test_torchrun_over_several_nodes_without_an_id_says_which_flag_to_set() -> None:
    with pytest.raises(ValueError, match="--rdzv-id"):
        ensure_run_id({"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "2"})


def test_processes_started_in_the_same_second_never_share_an_id() -> None:
    started = [subprocess.Popen([sys.executable, "-c", SAY_ID], stdout=subprocess.PIPE, text=True) for _ in range(8)]
    ids = [process.communicate()[0].strip() for process in started]
    assert all(ids)
    assert len(set(ids)) == 8


@pytest.mark.distributed
@pytest.mark.parametrize("static", [False, True], ids=["default", "without an id of its own"])
def test_the_ranks_of_one_torchrun_agree_and_those_of_another_started_with_it_differ(
    tmp_path: Path, static: bool
) -> None:
    script = tmp_path / "say.py"
    # `none` is what a rendezvous without an id says. A file for each rank: lines of one pipe may run into each other.
    script.write_text(
        "import os, pathlib, sys\n"
        + ("os.environ['TORCHELASTIC_RUN_ID'] = 'none'\n" if static else "")
        + "from syncbn.launch.run_id import ensure_run_id\n"
        + "pathlib.Path(sys.argv[1], os.environ['RANK']).write_text(ensure_run_id())\n"
    )
    jobs = [tmp_path / "job0", tmp_path / "job1"]
    before = datetime.now() - timedelta(seconds=2)  # the system's boot time is known to a second
    started = []
    for job in jobs:
        job.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [str(script), str(job)]
        started.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}))
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    ids = [{(job / rank).read_text() for rank in ("0", "1")} for job in jobs]
    assert [len(of_a_job) for of_a_job in ids] == [1, 1]
    assert ids[0].isdisjoint(ids[1])
    for run_id in ids[0] | ids[1]:
        started_at = datetime.strptime(run_id.rpartition("-")[0], "%Y%m%d-%H%M%S")
        assert before <= started_at <= datetime.now()
