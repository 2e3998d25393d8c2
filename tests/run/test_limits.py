"""What ends a run: epochs, steps and time, alone and together; and what is said before a run that can't go."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from syncbn.run import screen
from syncbn.run.errors import UserError
from syncbn.run.limits import batch_mistakes, limit_mistakes, seconds
from tests.run.here import train

STEPS = 20  # of 34 in an epoch


def weights(run: Any, name: str = "last") -> dict[str, torch.Tensor]:
    return run.checkpoint(name)["state_dict"]


UNSCHEDULED = ["trainer.max_epochs=null", "~scheduler"]  # a schedule knows the steps of each start alone


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """68 steps without a stop."""
    return train(tmp_path_factory.mktemp("whole"), "whole", *UNSCHEDULED, "trainer.max_steps=68")


@pytest.mark.parametrize("epochs", ["null", "-1", "5"])
def test_steps_end_a_run_in_the_middle_of_an_epoch(
    epochs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is validated, saved and tested, and goes on where it was, with every default callback."""
    limits = [f"trainer.max_epochs={epochs}", f"trainer.max_steps={STEPS}"]
    run = train(tmp_path, "run", *limits)
    out = capsys.readouterr().out
    of_5 = " of 5" if epochs == "5" else ""
    assert f"training:      0{of_5} epoch(s), {STEPS} steps in " in out
    assert f"(trainer.max_steps={STEPS} ended it)" in out
    assert "test accuracy:" in out
    assert len(run.column("val/loss")) == 1
    assert run.checkpoint()["global_step"] == run.checkpoint("best")["global_step"] == STEPS
    scores = [state.get("best_model_score") for state in run.checkpoint()["callbacks"].values()]
    assert [float(score) for score in scores if score is not None] == run.column("val/loss")


@pytest.mark.parametrize("stops", [(20,), (34,), (33, 35), (1, 67)])
def test_a_run_that_is_given_more_steps_is_the_one_that_had_them_from_the_start(
    stops: tuple[int, ...], tmp_path: Path, whole: Any
) -> None:
    for stop in stops:
        train(tmp_path, "run", *UNSCHEDULED, f"trainer.max_steps={stop}", "resume=auto")
    run = train(tmp_path, "run", *UNSCHEDULED, "trainer.max_steps=68", "resume=auto")
    assert run.checkpoint()["global_step"] == 68
    torch.testing.assert_close(weights(run), weights(whole), rtol=0, atol=0)
    assert run.column("train/loss")[-1] == whole.column("train/loss")[-1]
    assert run.column("val/loss")[-1] == whole.column("val/loss")[-1]


def test_time_ends_a_start_and_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = [*UNSCHEDULED, "trainer.max_time={seconds: 0.0001}", "resume=auto"]
    train(tmp_path, "run", *limits)
    first = capsys.readouterr().out
    assert "trainer.max_time ended it" in first
    assert "test accuracy:" in first
    run = train(tmp_path, "run", *limits)
    assert "epoch(s), 1 steps after step 1 in" in capsys.readouterr().out
    assert run.checkpoint()["global_step"] == 2


@pytest.mark.parametrize("epochs", [2, 4])
def test_a_run_past_its_end_says_so_and_is_tested(
    epochs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, "run", f"trainer.max_epochs={epochs}")
    capsys.readouterr()
    run = train(tmp_path, "run", "trainer.max_epochs=1", "resume=auto")
    out = capsys.readouterr().out
    where = f"the run is after step {34 * epochs} and {epochs} epoch(s)"
    assert f"training:      none: {where}; trainer.max_epochs=1 ended it" in out
    assert "test accuracy:" in out
    assert run.checkpoint()["global_step"] == 34 * epochs


def test_a_run_that_stopped_early_stays_stopped_until_it_is_given_more_patience(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["trainer.max_epochs=5", "trainer.limit_train_batches=2", "trainer.log_every_n_steps=1"]
    early = ["callbacks.early_stopping.min_delta=100", *sizes]
    run = train(tmp_path, "run", *early, "callbacks.early_stopping.patience=1")
    assert run.checkpoint()["epoch"] == 1
    rows = run.column("val/loss")
    capsys.readouterr()
    again = train(tmp_path, "run", *early, "callbacks.early_stopping.patience=1", "resume=auto")
    assert "none: the run is after step 4 and 2 epoch(s); stopped early: " in capsys.readouterr().out
    assert again.column("val/loss") == rows
    assert again.checkpoint()["epoch"] == 1
    more = train(tmp_path, "run", *early, "callbacks.early_stopping.patience=2", "resume=auto")
    assert more.checkpoint()["epoch"] == 2


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("00:00:00:05", 5),
        ("01:02:03:04", 93784),
        ({"hours": 1, "minutes": 30}, 5400),
        ({"seconds": 0.5}, 0.5),
        (None, None),
    ],
)
def test_a_time_is_read(time: Any, expected: float | None) -> None:
    assert seconds(time) == expected


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"max_time": {"minuts": 5}}, r"trainer.max_time: no such unit 'minuts'; did you mean 'minutes'\?"),
        ({"max_time": "5:00"}, "trainer.max_time: expected days:hours:minutes:seconds"),
        ({"max_time": {"seconds": 0}}, "expected a time above 0 seconds"),
        ({"max_time": {}}, "expected a time above 0 seconds"),
        ({"max_time": {"seconds": -5}}, "expected a time above 0 seconds"),
        ({}, "trainer: nothing ends this run; set trainer.max_epochs, "),
        ({"max_epochs": None, "max_steps": -1, "max_time": None}, "nothing ends this run"),
    ],
)
def test_limits_that_are_none(trainer: dict[str, Any], message: str) -> None:
    (found,) = limit_mistakes(trainer, trains=True)
    assert re.search(message, found)


@pytest.mark.parametrize(
    "trainer", [{"max_epochs": -1}, {"max_steps": 1}, {"max_time": "00:01:00:00"}, {"fast_dev_run": True}]
)
def test_limits_that_are_enough(trainer: dict[str, Any]) -> None:
    assert limit_mistakes(trainer, trains=True) == []
    assert limit_mistakes({}, trains=False) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.limit_test_batches=0", "trainer.limit_test_batches=0 leaves the test out: add test=false"),
        (
            "trainer.limit_test_batches=0.001",
            r"limit_test_batches=0.001 of \d+ batch\(es\) is none: .*=1\)",
        ),
        ("trainer.limit_val_batches=0.001", "trainer.limit_val_batches=0.001 of"),
        ("trainer.limit_train_batches=0.01", "trainer.limit_train_batches=0.01 of 34"),
        ("trainer.overfit_batches=0.01", r"trainer.overfit_batches=0.01 of 34 .*one batch is overfit_batches=0.03"),
        ("trainer.accumulate_grad_batches=35", r"trainer.accumulate_grad_batches=35 is more than the 34 batch\(es\)"),
        ("~trainer.max_epochs", "trainer: nothing ends this run"),
    ],
)
def test_what_would_end_in_a_traceback_is_told_before_the_first_step(
    override: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path, "run", override)
    assert not (tmp_path / "run" / ".hydra").exists()


@pytest.mark.parametrize(
    ("trainer", "batches", "count"),
    [
        ({"limit_train_batches": 1.0}, {"train": 1}, 0),
        ({"limit_train_batches": 0.5}, {"train": 1}, 1),
        ({"limit_train_batches": 5, "accumulate_grad_batches": 5}, {"train": 34}, 0),
        ({"limit_train_batches": 5, "accumulate_grad_batches": 6}, {"train": 34}, 1),
        ({"limit_train_batches": 0.2, "accumulate_grad_batches": 7}, {"train": 34}, 1),
        ({"overfit_batches": 3, "accumulate_grad_batches": 4}, {"train": 34}, 1),
        ({"overfit_batches": 3, "limit_train_batches": 0.001}, {"train": 34}, 0),
        ({"overfit_batches": 0.0, "limit_val_batches": 0}, {"train": 34, "val": 5}, 0),
        ({"limit_val_batches": 0.2}, {"val": 5}, 0),
        ({"limit_val_batches": 0.19}, {"val": 5}, 1),
        ({"limit_test_batches": 0.19}, {}, 0),
    ],
)
def test_limits_and_batches(trainer: dict[str, Any], batches: dict[str, int], count: int) -> None:
    assert len(list(batch_mistakes(trainer, batches, tests=True))) == count


@pytest.mark.parametrize("end", [["trainer.max_steps=4"], ["trainer.max_epochs=2"], ["trainer.max_steps=6"]])
def test_started_again_a_finished_run_tests_under_the_same_numbers(end: list[str], tmp_path: Path) -> None:
    """An end in the middle of an epoch, too: 4 steps are an epoch of 3 and one more."""
    if end[0].startswith("trainer.max_steps"):
        end = ["trainer.max_epochs=-1", *end]
    short = ["trainer.limit_train_batches=3", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
    rows = []
    for _ in range(3):
        run = train(tmp_path, "run", *end, *short, "data.batch_size=16", "resume=auto", "trainer.log_every_n_steps=1")
        with (run.folder / "metrics.csv").open(newline="") as file:
            rows.append([(row["epoch"], row["step"]) for row in csv.DictReader(file) if row.get("test/acc")])
    assert rows[1:] == rows[:1] * 2


def test_what_ended_a_training_early_is_true() -> None:
    """A task or a callback may stop the trainer, too."""
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[EarlyStopping("val/loss", patience=2)])
    trainer.should_stop = True
    assert screen._ended_by(trainer) == "stopped early: a callback or the task set trainer.should_stop"
    trainer.early_stopping_callbacks[0].wait_count = 2
    assert screen._ended_by(trainer) == "stopped early: val/loss no longer improved"


def test_the_metrics_of_any_task_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_results({"test/acc": 0.5, "test/loss": 1.25}, tmp_path)
    assert "test accuracy: 50.00 %   test loss: 1.2500\n" in capsys.readouterr().out
    screen.print_results({"test/acc": 0.5, "test/f1": 0.25}, tmp_path)
    assert "test:          acc 0.5   f1 0.25\n" in capsys.readouterr().out
    screen.print_results({"test/loss": 1.25}, tmp_path)
    assert "test:          loss 1.25\n" in capsys.readouterr().out
