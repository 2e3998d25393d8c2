"""The wheel, built and installed into its own environment: `syncbn` in an empty folder, without the checkout.

The other packages come from the tests' environment, through a .pth file, but not its editable syncbn: Python reads
only the .pth files of its own site-packages.
"""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, SHORT

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True, timeout=120)
    (found,) = folder.glob("syncbn-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of an environment with the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text("\n".join(place for place in sys.path if place.endswith("-packages")))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True, timeout=120)
    return folder / "bin"


def run(folder: Path, *command: str | Path) -> str:
    """Run a command in a folder and an environment without the checkout; returns its output."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SYNCBN_", "PYTHON", "WANDB_"))}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_holds_the_package_and_its_configs_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"syncbn"}
    assert {"syncbn/conf/train.yaml", "syncbn/cli/train.py", "syncbn/norm/kernels/native.cpp"} <= set(names)
    assert not [name for name in names if name.startswith("syncbn/conf/") and not name.endswith(".yaml")]


def test_the_package_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    where = run(tmp_path, installed / "python", "-c", "import syncbn; print(syncbn.__file__)")
    assert Path(where.strip()).is_relative_to(installed.parent)
    missing = "import importlib.util as u; print(*(u.find_spec(name) for name in ('science', 'benchmarks', 'tests')))"
    assert run(tmp_path, installed / "python", "-c", missing) == "None None None\n"


@pytest.mark.parametrize(
    "command",
    [
        ["syncbn", "train"],
        ["syncbn", "train", "trainer=ddp"],
        ["python", "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "syncbn", "train", "trainer=ddp"],
        ["syncbn", "train", "trainer=ddp_sim"],
        ["syncbn", "train", "launcher=local", "trainer=ddp", "hydra.launcher.tasks_per_node=2"],
    ],
    ids=["one_process", "two_ranks", "torchrun", "spawned", "submitted"],
)
def test_it_trains_the_digits_in_an_empty_folder(installed: Path, tmp_path: Path, command: list[str]) -> None:
    # A file that would shadow Python's module if a rank searched this folder, as `python -m` does.
    if command[0] == "syncbn" and "trainer=ddp_sim" not in command and "launcher=local" not in command:
        (tmp_path / "logging.py").write_text("raise RuntimeError('not the logging module')\n")
    program, *words = command
    out = run(tmp_path, installed / program, *words, *SHORT, "run_id=first", "callbacks=checkpoint")
    folder = tmp_path / "outputs" / "first"
    job = folder / "0" if "launcher=local" in command else folder
    assert {path.name for path in (job / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    text = out + "".join(log.read_text() for log in folder.rglob("*_log.out"))
    assert text.count("test accuracy:") == 1
    ranks = 2 if len(command) > 2 else 1
    assert f"processes:     {ranks} on cpu" in text


def test_a_run_is_evaluated_and_compared(installed: Path, tmp_path: Path) -> None:
    run(tmp_path, installed / "syncbn", "train", *SHORT, "run_id=first", "callbacks=checkpoint", "test=false")
    assert "test accuracy:" in run(tmp_path, installed / "syncbn", "evaluate", "run=outputs/first")
    assert "first" in run(tmp_path, installed / "syncbn", "compare", "outputs/first")
    assert (tmp_path / "compare.png").is_file()
