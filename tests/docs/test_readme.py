"""Every block of README.md is run, or checked as far as that goes without a network.

Bash blocks run line by line in one folder, as a reader would type them there:

- a line with `scripts/train.py` trains, with overrides added that make it short;
- `python`, `torchrun` and `pytest` run as they are, from a folder where the Python blocks are files;
- `make` lines run as `make -n`: CI runs the targets themselves;
- `pip install` lines must name extras that exist, and `wandb sync` files that the runs before it have written.

Python blocks run in processes of their own. One that begins with `# name.py; run it with: <command>` is written to that
file and run by that command.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.docs.markdown import REPOSITORY, Block, blocks

README = (REPOSITORY / "README.md").read_text()
SHORT = "trainer.limit_train_batches=2 trainer.limit_val_batches=1 trainer.accelerator=cpu model.width=8"
PICTURED = "outputs/first"  # the folder whose contents the README lists: that run alone draws its plots
RUN_WITH = re.compile(r"# (?P<file>\w+\.py); run it with: (?P<command>.+)\n")


def section(title: str) -> list[Block]:
    """The blocks below a heading."""
    (text,) = [part for part in re.split(r"^## ", README, flags=re.MULTILINE) if part.startswith(f"{title}\n")]
    return blocks(text)


def shortened(line: str) -> str:
    """A training line that ends after an epoch of two batches; a resumed one after another."""
    if "scripts/train.py" not in line or "--cfg" in line:
        return line
    resumed = "resume=" in line
    plain = "debug=" in line or (f"run_id={Path(PICTURED).name}" in line and not resumed)
    return f"{line} {SHORT} trainer.max_epochs={2 if resumed else 1}{'' if plain else ' callbacks=checkpoint'}"


def shell(line: str, folder: Path) -> str:
    """Run a line as bash would in an environment where this Python is `python`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SYNCBN_", "WANDB_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**inherited, "PATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_line(line: str, folder: Path) -> None:
    """Run or check a line of a bash block."""
    words = shlex.split(line)
    program = Path(words[0]).name
    if program == "make":
        assert shell(f"make -n {' '.join(words[1:])}", REPOSITORY)
    elif program == "pip":
        check_install(words)
    elif program == "wandb":
        assert all(list(folder.glob(pattern)) for pattern in words[2:]), line
    elif words[:3] == ["python", "-m", "venv"]:
        shell(shlex.join(["python", "-m", "venv", "--without-pip", words[3]]), folder)
    elif program in ("python", "torchrun", "pytest"):
        shell(shortened(line), folder)
    else:
        raise AssertionError(f"README.md runs {program!r}, which this test doesn't know")


def check_install(words: list[str]) -> None:
    """`pip install ".[extra]"` names an extra of the project; another package is one that the project needs."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (requirement,) = [word for word in words[2:] if not word.startswith(("-", "http"))]
    if requirement.startswith("."):
        extra = requirement.removeprefix(".").strip("[]")
        assert not extra or extra in project["optional-dependencies"], requirement
    else:
        assert requirement in project["dependencies"], requirement


def run_block(block: Block, folder: Path) -> None:
    """Run a block of any language that the README has."""
    if block.language == "bash":
        for line in block.text.splitlines():
            run_line(line, folder)
        return
    assert block.language == "python", f"a block of language {block.language!r} isn't checked by anything"
    named = RUN_WITH.match(block.text)
    file = folder / (named["file"] if named else "block.py")
    file.write_text(block.text)
    shell(named["command"] if named else "python block.py", folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like the repository's top to the README's commands, with its own outputs."""
    (tmp_path / "scripts").symlink_to(REPOSITORY / "scripts")
    return tmp_path


def test_every_block_is_in_a_section_that_is_run() -> None:
    titles = ("Two commands", "In a model of your own", "In your own LightningModule", "Experiments")
    assert sum(len(section(title)) for title in titles) == len(blocks(README))


def test_the_two_commands(folder: Path) -> None:
    for block in section("Two commands"):
        run_block(block, folder)


@pytest.mark.distributed
@pytest.mark.slow
def test_the_library_users_section(folder: Path) -> None:
    for block in section("In a model of your own"):
        run_block(block, folder)
    assert (folder / "net.pt").is_file()


@pytest.mark.distributed
@pytest.mark.slow
def test_the_lightning_users_section(folder: Path) -> None:
    for block in section("In your own LightningModule"):
        run_block(block, folder)


@pytest.mark.distributed
@pytest.mark.slow
def test_the_experimenters_section(folder: Path) -> None:
    for block in section("Experiments"):
        run_block(block, folder)
    run = folder / PICTURED
    cells = re.findall(r"^\| `([\w./`, ]+)` \|", README, flags=re.MULTILINE)
    names = [name for cell in cells for name in cell.replace("`", "").split(", ")]
    assert {".hydra/", "checkpoints/", "metrics.csv", "plots/", "wandb/"} <= set(names)
    for name in names:
        assert (run / name).exists() or name == "tensorboard/", name
    assert (folder / "norms.png").is_file()
