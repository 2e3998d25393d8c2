"""A run that is killed between a checkpoint and the row of metrics.csv that follows it."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector as Connector

from syncbn.training import ClassificationTask
from tests.run.here import RunHere, train
from tests.run.test_callbacks_go_on import BATCHES, options
from tests.run.test_disks import at
from tests.soak.compare import MEASURED

KILLED = "killed here"
BY_STEPS = ("callbacks.checkpoint_last.every_n_epochs=null", "callbacks.checkpoint_last.every_n_train_steps=3")
EVERY = {"epoch": options("default"), "3 steps": [*options("by_steps"), *BY_STEPS]}


@pytest.fixture(scope="module", autouse=True)
def logs_steps() -> Iterator[None]:
    """Let the task log a value of each step, too."""
    before = ClassificationTask.training_step

    def step(self: Any, *arguments: Any) -> Any:
        loss = before(self, *arguments)
        self.log("train/now", loss, on_step=True, on_epoch=False)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", step)
        yield


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunHere]:
    """The runs that nobody killed."""
    return {every: train(tmp_path_factory.mktemp("whole"), "run", *words) for every, words in EVERY.items()}


def rows(run: RunHere) -> list[dict[str, str]]:
    """Rows of metrics.csv, without what was measured in seconds."""
    with (run.folder / "metrics.csv").open(newline="") as file:
        read = [{k: v for k, v in row.items() if v and not k.startswith(MEASURED)} for row in csv.DictReader(file)]
    return [row for row in read if row.keys() - {"step", "epoch"}]


def kill() -> None:
    raise RuntimeError(KILLED)


def kill_and_resume(folder: Path, words: list[str], owner: Any, name: str, number: int) -> RunHere:
    """Train, killed before the n-th call of a function, and to the end by the same line."""
    with pytest.MonkeyPatch.context() as patch:
        at(owner, name, number, kill, patch)
        with pytest.raises(RuntimeError, match=KILLED):
            train(folder, "run", *words)
    return train(folder, "run", *words)


@pytest.mark.parametrize(
    ("every", "name", "number"),
    [
        ("epoch", "update_train_epoch_metrics", 1),
        ("epoch", "update_train_epoch_metrics", 2),
        ("3 steps", "update_train_step_metrics", 3),
        ("3 steps", "update_train_step_metrics", 6),
        ("3 steps", "update_train_step_metrics", BATCHES),  # of the first checkpoint it is long there
    ],
)
def test_the_row_is_there(every: str, name: str, number: int, tmp_path: Path, wholes: dict[str, RunHere]) -> None:
    run = kill_and_resume(tmp_path, EVERY[every], Connector, name, number)
    assert rows(run) == rows(wholes[every])


def test_a_run_that_resumes_another_ones_checkpoint_has_its_own_rows(
    tmp_path: Path, wholes: dict[str, RunHere]
) -> None:
    last = wholes["epoch"].folder / "checkpoints" / "last.ckpt"
    run = train(tmp_path, "run", *EVERY["epoch"], f"resume={last}", "trainer.max_epochs=3")
    assert {row["step"] for row in rows(run)} == {str(step) for step in range(2 * BATCHES, 3 * BATCHES + 1)}
