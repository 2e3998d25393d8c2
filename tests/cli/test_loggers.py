"""metrics.csv over a resumed run, and when W&B is offline."""

import csv
from pathlib import Path

import pytest

from syncbn.training.loggers import RunFolderCSVLogger, is_offline


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
