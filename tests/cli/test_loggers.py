"""metrics.csv over a resumed run, and when W&B is offline."""

import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from syncbn.training.loggers import RunFolderCSVLogger, is_offline, wandb_logger


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_resumed_run_goes_on_with_its_table_and_logs_no_step_twice(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()  # the folder is never empty
    first = RunFolderCSVLogger(str(tmp_path))
    for step in range(4):
        first.log_metrics({"a": float(step)}, step=step)
    first.save()
    resumed = RunFolderCSVLogger(str(tmp_path))
    resumed.cut_at(2)
    resumed.log_metrics({"a": 20.0, "b": 1.0}, step=2)
    resumed.save()
    assert [(row["step"], row["a"], row["b"]) for row in read(tmp_path)] == [
        ("0", "0.0", ""),
        ("1", "1.0", ""),
        ("2", "20.0", "1.0"),
    ]


def test_wandb_is_offline_unless_somebody_is_logged_in_or_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    assert is_offline()
    netrc.write_text("machine api.wandb.ai login user password not-a-real-key\n")
    netrc.chmod(0o600)
    assert not is_offline()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert is_offline()
    monkeypatch.setenv("WANDB_API_KEY", "not-a-real-key")
    assert not is_offline()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert is_offline()
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert not is_offline()


def test_a_table_that_a_full_disk_has_cut_short_goes_on(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,b,epoch,step\n1.0,2.0,0,0\n1.0,2.0,0,1\n1.0,2.")
    logger = RunFolderCSVLogger(str(tmp_path))
    logger.cut_at(5)
    logger.log_metrics({"a": 3.0, "b": 4.0}, step=2)
    logger.save()
    assert [(row["step"], row["a"]) for row in read(tmp_path)] == [("0", "1.0"), ("1", "1.0"), ("2", "3.0")]


def test_a_folder_that_is_another_starts_by_now_gets_no_row(tmp_path: Path) -> None:
    def overtaken() -> None:
        raise RuntimeError("overtaken")

    logger = RunFolderCSVLogger(str(tmp_path))
    logger.log_metrics({"a": 1.0}, step=0)
    logger.check = overtaken
    with pytest.raises(RuntimeError, match="overtaken"):
        logger.log_metrics({"a": 2.0}, step=1)
    assert [row["step"] for row in read(tmp_path)] == ["0"]


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user who isn't logged in to W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path


@pytest.mark.parametrize("mode", [None, "online", "shared", "run"])
def test_a_run_that_must_be_online_needs_a_login(
    mode: str | None, nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(ValueError, match="nobody is logged in to W&B: run wandb login, set WANDB_API_KEY, or take"):
        wandb_logger(str(nobody / "run"), "run", "syncbn", offline=None if mode else False)
    assert not (nobody / "run").exists()


@pytest.mark.parametrize("offline", [None, True, False])
def test_a_disabled_run_writes_nothing(offline: bool | None, nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = wandb_logger(str(nobody / "run"), "run", "syncbn", offline=offline)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.experiment.finish()
    assert not list(nobody.rglob("*.wandb"))


@pytest.mark.parametrize(
    ("variables", "arguments", "said"),
    [
        ({"WANDB_MODE": "banana"}, {}, "mode: Input should be 'online', .* got 'banana'"),
        ({}, {"project": "a/b"}, "Invalid project name 'a/b'"),
        ({}, {"run_id": "a:b"}, "Run ID cannot contain"),
        ({"WANDB_RUN_ID": " a"}, {}, "Run ID cannot start or end with whitespace"),
        ({"WANDB_RESUME": "maybe"}, {}, "resume: Input should be 'allow', 'must', 'never' or 'auto', got 'maybe'"),
        ({}, {"tags": ["a" * 70]}, "run_tags: .* is 70 characters"),
    ],
)
def test_what_wandb_doesnt_take_is_said_before_the_run(
    variables: dict[str, str], arguments: dict[str, Any], said: str, nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^logger.wandb: {said}"):
        wandb_logger(**{"save_dir": str(nobody / "run"), "run_id": "run", "project": "syncbn", **arguments})
    assert not (nobody / "run").exists()


LOGGED = """
from pathlib import Path
from syncbn.run.screen import print_results
from syncbn.training.loggers import wandb_logger
run = wandb_logger("run", "run", "syncbn").experiment
print(run.id, run.name, run.notes, sep="|")
run.finish()
print_results({}, Path("run").resolve())
"""


def test_wandbs_own_variables_mean_what_wandb_says(nobody: Path) -> None:
    """In a process of its own: W&B reads them once."""
    variables = {"WANDB_NAME": "a name", "WANDB_NOTES": "some notes", "WANDB_DIR": str(nobody / "it's elsewhere")}
    variables["WANDB_RUN_ID"] = "an-id"
    words = [sys.executable, "-c", LOGGED]
    environ = {**os.environ, **variables}
    done = subprocess.run(words, cwd=nobody, env=environ, capture_output=True, text=True, check=True)
    (written,) = nobody.rglob("offline-run-*")
    assert written.parent.parent == nobody / "it's elsewhere"
    assert "an-id|a name|some notes" in done.stdout.splitlines()
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("W&B, offline:")]
    assert shlex.split(line.removeprefix("W&B, offline:")) == ["wandb", "sync", str(written.relative_to(nobody))]
