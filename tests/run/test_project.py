"""The user's project: how it is found, its allowed settings, and its configs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from syncbn.run.command_line import CommandLine
from syncbn.run.compose import checked_configs
from syncbn.run.errors import UserError
from syncbn.run.project import Project, find_project
from syncbn.run.search_path import conf_dirs

TABLE = '[tool.syncbn]\npackages = ["mine"]\n'


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a package and configs, and the folder that commands are started in."""
    folder = tmp_path / "project"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "__init__.py").touch()
    (folder / "pyproject.toml").write_text(f'[project]\nname = "mine"\n\n{TABLE}')
    for group in ("model", "optimizer", "experiment"):
        (folder / "conf" / group).mkdir(parents=True)
    (folder / "conf" / "model" / "mine.yaml").write_text("_target_: mine.Net\nwidth: 4\n")
    (folder / "conf" / "optimizer" / "sgd.yaml").write_text("_target_: torch.optim.SGD\n_partial_: true\nlr: 0.25\n")
    (folder / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: mine\ntrainer:\n  max_epochs: 3\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")
    monkeypatch.delenv("SYNCBN_PROJECT", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return folder


def test_it_is_found_from_its_folder_and_from_those_below(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_project() == Project(root, ("mine",))
    (root / "notebooks" / "old").mkdir(parents=True)
    monkeypatch.chdir(root / "notebooks" / "old")
    assert find_project() == Project(root, ("mine",))
    monkeypatch.chdir(root.parent)
    assert find_project() is None
    monkeypatch.setenv("SYNCBN_PROJECT", str(root))
    assert find_project() == Project(root, ("mine",))


def test_the_nearest_one_is_taken_and_other_tables_are_passed_over(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "inner" / "deep").mkdir(parents=True)
    (root / "inner" / "pyproject.toml").write_text("[tool.ruff]\nline-length = 100 # not tool.syncbn\n")
    monkeypatch.chdir(root / "inner" / "deep")
    assert find_project() == Project(root, ("mine",))
    (root / "inner" / "pyproject.toml").write_text("[tool.syncbn]\n")
    assert find_project() == Project(root / "inner", ())


@pytest.mark.parametrize("marker", [".hydra/config.yaml", "multirun.yaml"])
@pytest.mark.parametrize("place", [".", "code", "code/deeper"])
def test_a_run_folder_is_none_and_holds_none(
    root: Path, monkeypatch: pytest.MonkeyPatch, marker: str, place: str
) -> None:
    run = root / "outputs" / "a_strangers_run"
    (run / place).mkdir(parents=True)
    (run / marker).parent.mkdir(exist_ok=True)
    (run / marker).touch()
    (run / place / "pyproject.toml").write_text('[tool.syncbn]\npackages = ["evil"]\n')
    monkeypatch.chdir(run / place)
    assert find_project() == Project(root, ("mine",))


def test_a_file_of_another_user_above_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "work").mkdir()
    monkeypatch.chdir(root / "work")
    assert find_project() is not None
    if os.getuid() == 0:  # another user's file can only be made by root
        os.chown(root / "pyproject.toml", 12345, 12345)
        assert find_project() is None
        os.chown(root / "work", 12345, 12345)  # root in a container, in a folder of the user outside
        assert find_project() is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.syncbn]\npackage = ['mine']", r"\[tool.syncbn\] has no key 'package'; did you mean 'packages'\?"),
        ("[tool.syncbn]\npackages = 'mine'", r"expected a list of names, packages = \[\"my_project\"\], got 'mine'"),
        ("[tool.syncbn]\npackages = [3]", r"expected a list of names"),
        ("[tool.syncbn]\npackages = ['my-project']", r"'my-project' isn't the name of a package"),
        ("[tool.syncbn]\npackages = ['os']", r"'os' is no package of yours"),
        ("[tool.syncbn]\npackages = ['torch.hub']", r"'torch.hub' is no package of yours"),
        ("[tool]\nsyncbn = 3 # tool.syncbn", r"expected a table \[tool.syncbn\], got 3"),
        ("[tool.syncbn\n", r"pyproject.toml can't be read: "),
    ],
)
def test_a_mistake_in_it_is_told_with_what_is_allowed(root: Path, text: str, message: str) -> None:
    (root / "pyproject.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_project()


def test_a_variable_that_names_no_project_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_PROJECT", "/nowhere")
    with pytest.raises(ValueError, match=r"SYNCBN_PROJECT=/nowhere: that folder has no pyproject.toml with a table"):
        find_project()


@pytest.mark.parametrize("layout", ["flat", "src", "file"])
def test_its_packages_are_imported_from_the_folder(root: Path, layout: str) -> None:
    (root / "mine" / "__init__.py").unlink()
    (root / "mine").rmdir()
    place = {"flat": "mine/__init__.py", "src": "src/mine/__init__.py", "file": "mine.py"}[layout]
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text("print('imported')")
    program = "from syncbn.run.project import find_project\nfind_project().make_importable()\nimport mine"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "imported\n"


def test_a_package_that_is_nowhere_is_told(root: Path) -> None:
    project = Project(root, ("mine", "syncbn_is_not_this"))
    with pytest.raises(ValueError, match=r"names 'syncbn_is_not_this', which is neither in .*project nor in its src/"):
        project.make_importable()


def test_its_choices_stand_beside_ours_and_before_them(root: Path) -> None:
    assert conf_dirs()[0] == root / "conf"
    (config,) = checked_configs(CommandLine(["experiment=mine"]))
    assert (config["model"], config["trainer"]["max_epochs"]) == ({"_target_": "mine.Net", "width": 4}, 3)
    assert config["optimizer"]["lr"] == 0.25  # the project's sgd
    assert checked_configs(CommandLine(["model=resnet34"]))[0]["model"]["_target_"].endswith("resnet34")
    with pytest.raises(UserError, match=r"model=mnie: no such choice; did you mean 'mine'\? .*resnet18"):
        checked_configs(CommandLine(["model=mnie"]))


def test_what_it_does_not_name_is_not_allowed(root: Path) -> None:
    with pytest.raises(UserError, match=r"'others.Net' is not in an allowed package .*, mine\); packages of your own"):
        checked_configs(CommandLine(["experiment=mine", "model._target_=others.Net"]))


def test_a_mistake_in_a_project_is_answered_before_torch_is_imported(root: Path) -> None:
    program = (
        "import sys\n"
        "sys.argv = ['train.py', 'model=mnie']\n"
        "from syncbn.cli import run\n"
        "try:\n"
        "    run('train')\n"
        "finally:\n"
        "    print('torch' in sys.modules, 'mine' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean 'mine'?" in done.stderr
    assert done.stdout.split() == ["False", "False"]


def test_other_programs_that_use_hydra_do_not_see_it(root: Path, tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path / "theirs"), version_base="1.3"):
        assert compose("config", ["+model=mine"]) == {"a": 1, "model": "mine"}  # a value, and no group
