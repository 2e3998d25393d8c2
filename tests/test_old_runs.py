"""Run folders of version 0.1 (tests/old_runs) open, evaluate and go on, with the paths and options they name.

`finished` is an MLP with norm=group, two epochs long. `stopped` is a residual network with norm=cross_iteration that
SIGTERM stopped in the middle of its fifth epoch, at step 161, with every default callback.
"""

import csv
import shutil
from pathlib import Path

import pytest

import syncbn
from tests.cli.conftest import run_script

OLD = Path(__file__).parent / "old_runs"
# What version 0.1 printed of the same runs; `stopped` was run there a second time, without the stop.
LOSS = {"finished": 1.9880475997924805, "stopped": 0.34939849376678467}


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A copy of the folders, elsewhere than where they were made."""
    shutil.copytree(OLD, tmp_path / "outputs")
    return tmp_path


@pytest.mark.parametrize("name", ["finished", "stopped"])
def test_an_old_run_is_loaded(outputs: Path, name: str) -> None:
    net, config = syncbn.load_run(outputs / "outputs" / name)

    assert not net.training
    assert config.run_id == name


def test_an_old_run_is_evaluated(outputs: Path) -> None:
    done = run_script(outputs, "evaluate", "run=outputs/finished")

    assert done.code == 0, done.err
    assert f"test loss: {LOSS['finished']:.4f}" in done.out


def test_an_old_run_that_was_stopped_goes_on_to_the_same_end(outputs: Path) -> None:
    # The options are those of .hydra/overrides.yaml: a resumed run is started by its own command line.
    options = ["model=deep", "model.depth=8", "model.width=4", "norm=cross_iteration", "norm.window=2"]
    options += ["trainer.max_epochs=8", "callbacks=[default,norm_monitor,momentum_schedule]"]

    done = run_script(outputs, "train", *options, "run_id=stopped", "resume=auto")

    assert done.code == 0, done.err
    assert "resumed:       after step 161" in done.out
    with (outputs / "outputs" / "stopped" / "metrics.csv").open(newline="") as file:
        losses = [float(row["test/loss"]) for row in csv.DictReader(file) if row["test/loss"]]
    assert losses == [pytest.approx(LOSS["stopped"], abs=2e-3)]  # another CPU may round otherwise


def test_an_old_run_that_was_finished_is_made_longer(outputs: Path) -> None:
    options = ["model=mlp", "model.hidden_size=16", "norm=group", "norm.groups=4", "data.batch_size=64"]

    done = run_script(outputs, "train", *options, "trainer.max_epochs=3", "run_id=finished", "resume=auto")

    assert done.code == 0, done.err
    assert "resumed:       after step 34" in done.out
