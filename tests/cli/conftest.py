"""Runs of the real scripts, each started once for all tests, since importing Lightning takes seconds."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
API_KEY = "0123456789abcdef" * 2 + "01234567"  # of W&B's form
SHORT = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=4",
    "trainer.limit_val_batches=1",
    "trainer.accelerator=cpu",
    "model.width=4",
)


@dataclass(frozen=True)
class Finished:
    """A finished command: its folder, exit code and output."""

    folder: Path
    code: int
    out: str
    err: str


def run_script(folder: Path, script: str, *arguments: str, torchrun: int = 0, **environ: str) -> Finished:
    """Run scripts/<script>.py in `folder`, directly or under torchrun with a number of ranks."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={torchrun}"] if torchrun else []
    command = [sys.executable, *launcher, str(REPOSITORY / "scripts" / f"{script}.py"), *arguments]
    inherited = {key: value for key, value in os.environ.items() if key not in ("SYNCBN_RUN_ID", "WANDB_API_KEY")}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200", **environ}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    return Finished(folder, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def one_process_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Short training in one process with all loggers, named `one`."""
    folder = tmp_path_factory.mktemp("one_process")
    return run_script(
        folder, "train", "run_id=one", "logger=many_loggers", "tags=[a,b]", *SHORT, WANDB_ENTITY="me", WANDB_MODE=""
    )


@pytest.fixture(scope="session")
def two_rank_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The same training on two ranks, started by torchrun."""
    folder = tmp_path_factory.mktemp("two_ranks")
    return run_script(folder, "train", "norm=sync", "trainer=ddp", "data.batch_size=16", *SHORT, torchrun=2)


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A sweep of two norms with `-m`, each job on two ranks that the script starts itself."""
    folder = tmp_path_factory.mktemp("sweep")
    arguments = ["-m", "run_id=sweep", "trainer=ddp", "norm=sync,layer", "logger=wandb", *SHORT]
    return run_script(folder, "train", *arguments, WANDB_API_KEY=API_KEY, WANDB_MODE="offline")
