"""The W&B view: its panels are filled by a run of ours, and without a server it is written to a file."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from syncbn.cli import dashboard
from syncbn.run.errors import UserError

pytest.importorskip("wandb_workspaces", reason='needs wandb-workspaces: pip install -e ".[dev]"')
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # of wandb-workspaces
TRAIN = (
    "run_id=shown logger=wandb callbacks=[default,norm_monitor] norm=batch model.width=8 trainer.max_epochs=1 "
    "trainer.accelerator=cpu trainer.limit_train_batches=12 trainer.log_every_n_steps=1 "
    "callbacks.norm_monitor.every_n_steps=6"
)


def panels(view: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for section in view["spec"]["section"]["panelBankConfig"]["sections"] for panel in section["panels"]]


@pytest.mark.slow
def test_a_run_fills_every_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = [sys.executable, "-m", "syncbn", "train", *TRAIN.split()]
    subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, timeout=250)
    folder = tmp_path / "outputs" / "shown"
    (sent,) = (folder / "wandb").glob("offline-run-*")
    inspected = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--summary", "--json", str(sent)]
    summary = json.loads(subprocess.run(inspected, check=True, capture_output=True, text=True).stdout)
    logged = {
        *(folder / "metrics.csv").read_text().splitlines()[0].split(","),
        *re.findall(r'"([\w/.-]+)"', str(json.dumps(summary))),
    }

    monkeypatch.chdir(tmp_path)
    dashboard.dashboard(["output=views/mine.json"])
    shown = panels(json.loads((tmp_path / "views" / "mine.json").read_text()))
    named, expressions = set(), set()
    for panel in shown:
        config = panel["config"]
        named |= {*config.get("metrics", []), *config.get("mediaKeys", [])}
        expressions |= {config["metricRegex"]} if config.get("metricRegex") else set()
        if panel["viewType"] == "Run History Line Plot":
            assert config["xAxis"] == "trainer/global_step"
    assert {"train/loss", "val/acc", "test/acc", "norm_report", "predictions"} <= named
    assert named <= logged
    for expression in expressions:
        assert any(re.fullmatch(expression, name) for name in logged), expression
    assert len(expressions) == 5


def test_offline_it_says_what_it_has_and_how_to_send_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    dashboard.dashboard(["project=digits", "entity=me", "name=norms"])
    printed = capsys.readouterr().out
    assert "training:  loss, accuracy, learning rate, test accuracy, test loss" in printed
    assert "wandb login" in printed
    view = json.loads((tmp_path / "dashboard.json").read_text())
    assert (view["entity"], view["project"], view["displayName"]) == ("me", "digits", "norms")


def test_online_it_needs_an_entity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    with pytest.raises(UserError, match="syncbn dashboard entity=<name>"):
        dashboard.dashboard([])
