"""A job that SLURM is about to end is queued again, or the run says why not."""

import os
import stat
from pathlib import Path

import pytest

from syncbn.launch.slurm import requeue

BATCH = {"ENVIRONMENT": "BATCH", "SLURM_JOB_ID": "42"}


def test_outside_a_batch_job_there_is_nothing_to_queue() -> None:
    assert requeue({}) is None
    assert requeue({"SLURM_JOB_ID": "42"}) is None  # a shell inside salloc


def test_in_a_container_without_scontrol_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = requeue(BATCH)
    assert said is not None
    assert "there is no scontrol here" in said
    assert "scontrol requeue 42" in said


def test_a_refusal_of_slurm_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "scontrol"
    program.write_text("#!/bin/sh\necho slurm_requeue error: Job is disabled from being requeued: $2 >&2\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    task = {**BATCH, "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "2"}
    assert requeue(task) == "SLURM doesn't: slurm_requeue error: Job is disabled from being requeued: 40_2"
