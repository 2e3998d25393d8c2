"""Runs the fenced blocks of a page in order, in one folder, as a reader would.

- Bash blocks run line by line. Training lines get overrides that make them short. `make` lines run as `make -n`,
  since CI runs the targets themselves. `pip install` lines must name existing extras, and `wandb sync` lines existing
  files.
- Python blocks run in their own processes. One that begins with `# name.py; run it with: <command>` is written to
  that file and run by that command.
- A text block is the output of the block before it. Numbers below 1e-12 in it are rounding errors, and may differ.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from syncbn.norm.core import compat
from tests.docs.markdown import REPOSITORY, Block

SHORT = "trainer.limit_train_batches=2 trainer.limit_val_batches=1 trainer.accelerator=cpu model.width=8"
PICTURED = "first"  # the run whose folder a guide lists: only it draws its plots
RUN_WITH = re.compile(r"# (?P<file>\w+\.py); run it with: (?P<command>.+)\n")
ROUNDING = re.compile(r"\d\.\de-1[2-9]")


def for_this_torch(text: str) -> str:
    """A program with the argument of DDP that the guide names for a torch which lacks `forward_sync_buffers`."""
    if "broadcast_buffers" in compat.ddp_without_buffers():
        return text.replace("forward_sync_buffers=False", "broadcast_buffers=False")
    return text


def run_page(blocks: list[Block], folder: Path) -> None:
    """Run or check every block."""
    printed = ""
    for block in blocks:
        if block.language == "text":
            assert ROUNDING.sub("rounding", printed) == ROUNDING.sub("rounding", block.text)
        else:
            printed = run_block(block, folder)


def run_block(block: Block, folder: Path) -> str:
    """Run a block, and return what it prints."""
    if block.language == "bash":
        return "".join(run_line(line, folder) for line in block.text.splitlines())
    assert block.language == "python", f"a block of language {block.language!r} isn't checked by anything"
    named = RUN_WITH.match(block.text)
    file = folder / (named["file"] if named else "block.py")
    file.write_text(for_this_torch(block.text))
    return shell(named["command"] if named else "python block.py", folder)


def run_line(line: str, folder: Path) -> str:
    """Run or check a line of a bash block."""
    words = shlex.split(line, comments=True)
    program = words[0]
    if program == "make":
        assert shell(f"make -n {' '.join(words[1:])}", REPOSITORY)
    elif program == "pip":
        check_install(words)
    elif program == "wandb":
        assert all(list(folder.glob(pattern)) for pattern in words[2:]), line
    elif program in ("syncbn", "python", "torchrun"):
        return shell(shortened(line), folder)
    else:
        raise AssertionError(f"a page runs {program!r}, which this test doesn't know")
    return ""


def shortened(line: str) -> str:
    """Shorten a training line to an epoch of two batches, or one more for a resumed run."""
    if "syncbn train" not in line or "--cfg" in line:
        return line
    resumed = "resume=" in line
    plain = f"run_id={PICTURED} logger=" in line and not resumed
    return f"{line} {SHORT} trainer.max_epochs={2 if resumed else 1}{'' if plain else ' callbacks=checkpoint'}"


def check_install(words: list[str]) -> None:
    """Check that `pip install ".[extra,...]"` names extras of the project."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (requirement,) = words[2:]
    extras = requirement.removeprefix(".").strip("[]").split(",") if requirement != "." else []
    assert requirement.startswith(".")
    assert set(extras) <= set(project["optional-dependencies"]), requirement


def shell(line: str, folder: Path) -> str:
    """Run a line in bash, where `python` is this Python, and return its output."""
    return outcome(line, folder)[0]


def outcome(line: str, folder: Path) -> tuple[str, str]:
    """Like `shell`, with stderr."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SYNCBN_", "WANDB_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**inherited, "PATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout, done.stderr
