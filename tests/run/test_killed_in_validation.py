"""A run that is killed in a validation, or right before or after one, is the one that wasn't, row by row."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector as Connector

from syncbn.training import ClassificationTask
from tests.run.here import RunHere, train
from tests.run.test_callbacks_go_on import compare, options
from tests.run.test_owed_row import BY_STEPS, kill_and_resume, rows

SIX_STEPS = ("trainer.max_epochs=-1", "trainer.max_steps=6")  # in the middle of the second epoch
RUNS = {
    "every 3 steps": [*options("by_steps"), *BY_STEPS, "trainer.val_check_interval=3"],
    "6 steps": [*options("default"), *SIX_STEPS],
    "6 steps, every 3": [*options("by_steps"), *BY_STEPS, *SIX_STEPS],
}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunHere]:
    """The runs that nobody killed."""
    return {name: train(tmp_path_factory.mktemp("whole"), "run", *words) for name, words in RUNS.items()}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    ("owner", "place", "number"),
    [
        (ClassificationTask, "validation_step", 2),
        (Connector, "log_eval_end_metrics", 1),
        (ModelCheckpoint, "on_validation_end", 2),  # between the best and the last checkpoint
        (ModelCheckpoint, "on_validation_end", 3),
        (ModelCheckpoint, "on_train_end", 2),
    ],
)
def test_the_run_is_the_one_that_was_not_killed(
    name: str, owner: Any, place: str, number: int, tmp_path: Path, wholes: dict[str, RunHere]
) -> None:
    run = kill_and_resume(tmp_path, RUNS[name], owner, place, number)
    compare(run, wholes[name])
    assert rows(run) == rows(wholes[name])


def test_the_validation_after_a_limit_at_another_one_counts_its_own_batches_alone(tmp_path: Path) -> None:
    schedule = ("scheduler=constant", "scheduler.warmup_fraction=0")  # of the limited start, too
    words = [*options("default"), "trainer.val_check_interval=2", *schedule]
    whole = train(tmp_path, "whole", *words)
    train(tmp_path, "run", *words, "trainer.max_steps=2")
    run = train(tmp_path, "run", *words)
    for name in ("val/loss", "val/acc"):
        assert run.column(name) == whole.column(name)
    assert run.checkpoint("best")["global_step"] == whole.checkpoint("best")["global_step"]
