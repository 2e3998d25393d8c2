"""Unique id of a run, the same on all its ranks and after restarts.

It is set before Hydra composes anything, because it names the run's folder: a name from the clock would differ between
ranks.
"""

import hashlib
import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import MutableMapping, Sequence
from pathlib import Path

VARIABLE = "SYNCBN_RUN_ID"
_CLOCK = "%Y%m%d-%H%M%S"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def ensure_run_id(environ: MutableMapping[str, str] = os.environ, arguments: Sequence[str] = ()) -> str:
    """Find the run's id and store it in `environ`, so that all processes started from here share it.

    The first of these that is available:

    1. `run_id=...` among the arguments of the command, then `SYNCBN_RUN_ID`: the user's choice, or a parent process's.
    2. SLURM: the array's job and task, or the job. A requeued job keeps it. Where several steps may share one
    allocation (`salloc`, not `sbatch`), also the step.
    3. torchrun: the user's rendezvous id; without one, start time and identity of the agent process, which its ranks
    share across restarts.
    4. The time and a random part.

    Raises:
        ValueError: an id that isn't valid as a folder name, or torchrun with several nodes and no `--rdzv-id`.
    """
    chosen = [argument.removeprefix("run_id=").strip("'\"") for argument in arguments if argument.startswith("run_id=")]
    run_id = (chosen or [""])[-1] or environ.get(VARIABLE) or _slurm(environ) or _torchrun(environ) or _fresh()
    environ[VARIABLE] = check_run_id(run_id)
    return run_id


def check_run_id(run_id: str) -> str:
    """Check that `run_id` is valid as a folder name, without separators, so that it can't leave the output root.

    Raises:
        ValueError: it isn't valid.
    """
    if not _ALLOWED.fullmatch(run_id):
        raise ValueError(
            f"a run id is 1 to 100 letters, digits, '.', '_' or '-' and starts with a letter or digit, got {run_id!r}: "
            f"change run_id=... or {VARIABLE}"
        )
    return run_id


def _fresh() -> str:
    return f"{time.strftime(_CLOCK)}-{secrets.token_hex(4)}"


def _slurm(environ: MutableMapping[str, str]) -> str | None:
    job = environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"slurm-{environ['SLURM_ARRAY_JOB_ID']}-{environ['SLURM_ARRAY_TASK_ID']}"
    if environ.get("ENVIRONMENT") == "BATCH":  # sbatch sets it: one job is one run, requeued or not
        return f"slurm-{job}"
    if is_srun_step(environ):
        return f"slurm-{job}-{environ['SLURM_STEP_ID']}"
    # A shell inside salloc: successive commands are different runs.
    return f"slurm-{job}-{_torchrun(environ) or _fresh()}"


def is_srun_step(environ: MutableMapping[str, str]) -> bool:
    """Whether `srun` started this process as a task of a step, unlike a batch script or a shell."""
    step = environ.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < 0xFFFFFFF0  # larger numbers are SLURM's own: batch, extern, interactive


def _torchrun(environ: MutableMapping[str, str]) -> str | None:
    rendezvous = environ.get("TORCHELASTIC_RUN_ID")
    if rendezvous is None:
        return None
    nodes = int(environ.get("GROUP_WORLD_SIZE", "1"))
    if rendezvous != "none" and not (_UUID.fullmatch(rendezvous) and nodes == 1):  # torchrun's default on one node
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", rendezvous)
        return f"torchrun-{name}"[:100]
    if nodes > 1:
        raise ValueError(
            "torchrun on several nodes needs a name that all of them know and no other run has: "
            f"add --rdzv-id=<name>, or export {VARIABLE}=<name>"
        )
    return _agent(rendezvous)


def _agent(rendezvous: str) -> str:
    """Start time and identifying hash of the torchrun agent, the parent of all ranks, alive across restarts."""
    parent = os.getppid()
    ticks, started = _start_of(parent)
    facts = (rendezvous, socket.gethostname(), _read("/proc/sys/kernel/random/boot_id"), str(parent), ticks)
    name = hashlib.sha256("|".join(facts).encode()).hexdigest()[:8]
    return f"{time.strftime(_CLOCK, started)}-{name}"


def _start_of(pid: int) -> tuple[str, time.struct_time]:
    """Start of a process in the system's count and by the clock.

    Process ids are reused; an id with its start time isn't.
    """
    stat = _read(f"/proc/{pid}/stat")
    if stat:  # clock ticks since boot: field 22, counted after the name, which may hold spaces and parentheses
        ticks = stat.rpartition(")")[2].split()[19]
        boot = next(int(line.split()[1]) for line in _read("/proc/stat").splitlines() if line.startswith("btime "))
        return ticks, time.localtime(boot + int(ticks) // os.sysconf("SC_CLK_TCK"))
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    return answer.stdout.strip(), time.strptime(answer.stdout.strip())


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # not Linux
        return ""
