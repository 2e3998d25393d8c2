"""Requeueing of SLURM jobs that are about to end."""

import os
import subprocess
from collections.abc import Mapping


def requeue(environ: Mapping[str, str] = os.environ) -> str | None:
    """Requeue this process's batch job under the same id; returns the outcome, or None outside a batch job.

    A shell inside `salloc` isn't one: SLURM can't restart its commands.
    """
    if environ.get("ENVIRONMENT") != "BATCH" or "SLURM_JOB_ID" not in environ:
        return None
    job = environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environ:
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:  # in a container
        return f"SLURM doesn't: there is no scontrol here ({error.strerror}); type scontrol requeue {job} outside"
    return f"SLURM starts job {job} again" if done.returncode == 0 else f"SLURM doesn't: {done.stderr.strip()}"
