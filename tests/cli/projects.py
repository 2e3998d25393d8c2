"""A project of a user's own, and commands typed in it as the user would."""

import os
import subprocess
import sys
from pathlib import Path

SHORT = ("trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=4", "data.num_train=150")


def typed(line: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """What becomes of a line in a shell, in a folder, where `syncbn` and `python` are those of this environment."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SYNCBN_", "WANDB_", "SLURM_"))}
    environment = {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        **environ,
    }
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


def succeeded(line: str, folder: Path, **environ: str) -> str:
    """What a line prints that must end well."""
    done = typed(line, folder, **environ)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def short(line: str) -> str:
    """A line that trains, shortened, unless it says how long it trains itself; any other as it is."""
    options = [option for option in SHORT if option.partition("=")[0] not in line]
    return f"{line} {' '.join(options)}" if " train " in line else line
