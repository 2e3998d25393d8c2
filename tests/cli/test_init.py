"""`syncbn init`: all that it writes is run, in a folder outside of the repository."""

import csv
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import syncbn
from syncbn.cli.init import init
from syncbn.run.errors import UserError
from tests.cli.projects import SHORT, short, succeeded, typed
from tests.docs.markdown import blocks

NAME = "my_shapes"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project, written by the command and trained by the first line of its README, shortened."""
    folder = tmp_path_factory.mktemp("somewhere")
    out = succeeded(f"syncbn init {NAME}", folder)
    assert out.splitlines()[-1] == f"cd {NAME} && syncbn train experiment=shapes"
    succeeded(short(readme_lines(folder / NAME)[0]), folder / NAME)
    return folder / NAME


def readme_lines(project: Path) -> list[str]:
    (block,) = blocks((project / "README.md").read_text())
    assert block.language == "bash"
    return block.text.splitlines()


def test_the_name_stands_wherever_the_template_has_one(project: Path) -> None:
    files = [path for path in project.rglob("*") if path.is_file() and "outputs" not in path.parts]
    written = {str(path.relative_to(project)) for path in files if "__pycache__" not in path.parts}
    assert written == {
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "train.sbatch",
        "conf/data/shapes.yaml",
        "conf/experiment/shapes.yaml",
        "conf/model/net.yaml",
        f"{NAME}/__init__.py",
        f"{NAME}/data.py",
        f"{NAME}/network.py",
        f"{NAME}/norm.py",
        f"tests/test_{NAME}.py",
    }
    assert not [name for name in written if "my_project" in (project / name).read_text()]


def test_the_two_commands_of_its_readme(project: Path) -> None:
    train, evaluate = readme_lines(project)
    assert train == "syncbn train experiment=shapes run_id=first"
    out = succeeded(evaluate, project)
    with (project / "outputs" / "first" / "metrics.csv").open(newline="") as file:
        (accuracy,) = [float(row["test/acc"]) for row in csv.DictReader(file) if row["test/acc"]]
    assert f"test accuracy: {100 * accuracy:.2f} %" in out


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The project's package, which a test imports into this process, is unknown to the tests after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


@pytest.mark.usefixtures("forgotten")
def test_the_run_is_loaded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    net, config = syncbn.load_run("outputs/first")
    assert net(torch.zeros(2, 1, 16, 16)).shape == (2, 3)
    assert config.model._target_ == f"{NAME}.network.Net"


def test_the_run_is_made_longer(project: Path) -> None:
    line = f"syncbn train experiment=shapes run_id=first resume=auto {' '.join(SHORT)} trainer.max_epochs=2"
    assert "resumed:       after step 4" in succeeded(line, project)


@pytest.mark.distributed
@pytest.mark.parametrize("start", ["syncbn train", "torchrun --nproc-per-node 2 -m syncbn train"])
def test_two_ranks_train_with_the_projects_norm(project: Path, start: str) -> None:
    run_id = "torchrun" if "torchrun" in start else "two"
    line = f"{start} experiment=shapes trainer=ddp norm=pixel norm.eps=1e-6 run_id={run_id}"
    out = succeeded(short(line), project)
    assert "norm=pixel in the place of 3 batch norm(s)" in out
    assert "processes:     2 on cpu" in out
    assert out.count("test accuracy:") == 1
    assert "test accuracy" in succeeded(f"syncbn evaluate run=outputs/{run_id}", project)


def test_a_misspelt_choice_names_the_projects_too(project: Path) -> None:
    done = typed("syncbn train experiment=shpaes", project)
    assert (done.returncode, "did you mean 'shapes'?" in done.stderr) == (2, True)
    done = typed("syncbn train experiment=shapes norm=pixle", project)
    assert (done.returncode, "did you mean 'pixel'?" in done.stderr) == (2, True)
    done = typed("syncbn train experiment=shapes norm=pixel norm.esp=1", project)
    assert (done.returncode, "norm.esp: no such key; did you mean 'eps'?" in done.stderr) == (2, True)


def test_its_own_tests_pass(project: Path) -> None:
    assert re.search(r"\d+ passed", succeeded("python -m pytest -q -p no:cacheprovider", project))


def test_the_file_for_slurm_is_bash(project: Path) -> None:
    subprocess.run(["bash", "-n", "train.sbatch"], cwd=project, check=True)


@pytest.mark.slow
def test_the_experiment_learns(project: Path) -> None:
    """Not only runs: as it is written, it tells squares, crosses and rings apart."""
    out = succeeded("syncbn train experiment=shapes run_id=whole trainer.accelerator=cpu", project)
    (accuracy,) = re.findall(r"test accuracy: ([\d.]+) %", out)
    assert float(accuracy) > 90


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "README.md").write_text("mine")
    with pytest.raises(UserError, match=rf"{NAME}/README.md would be overwritten: take another name"):
        init([NAME])
    assert [path.name for path in (tmp_path / NAME).iterdir()] == ["README.md"]
    (tmp_path / NAME / "README.md").rename(tmp_path / NAME / "LICENSE")  # beside what there is, it writes
    init([NAME])
    assert (tmp_path / NAME / "LICENSE").read_text() == "mine"
    with pytest.raises(UserError, match="would be overwritten"):
        init([NAME])


def test_a_file_in_the_way_of_a_folder_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "conf").touch()
    (tmp_path / "other").touch()
    for name, file in ((NAME, f"{NAME}/conf"), ("other", "other")):
        with pytest.raises(UserError, match=rf"^{file} would be overwritten"):
            init([name])
    assert [path.name for path in (tmp_path / NAME).iterdir()] == ["conf"]


def test_a_folder_that_waits_for_the_project_is_no_package(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()  # a fresh clone, say; python -m searches the current folder, too
    succeeded(f"python -m syncbn init {NAME}", tmp_path)
    done = typed(f"python -m syncbn init {NAME}", tmp_path)
    assert (done.returncode, "would be overwritten" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-project", r"allowed: small letters, digits and _, .*; did you mean 'my_project'\?"),
        ("My Project", r"did you mean 'my_project'\?"),
        ("3d", "'3d' can't be a package's name"),
        ("../escape", r"did you mean 'escape'\?"),
        ("a/b", "can't be a package's name"),
        ("class", "none of Python's keywords"),
        ("", "can't be a package's name"),
        ("tests", "is a folder of the project"),
        ("torch", "there is a package 'torch' already"),
        ("random", "there is a package 'random' already"),
        ("syncbn", "there is a package 'syncbn' already"),
    ],
)
def test_a_name_that_no_package_can_have_is_answered(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        init([name])
    assert list(tmp_path.iterdir()) == []
