"""Every callback of `conf/callbacks`, default and optional, through a stop and a resume anywhere in an epoch."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from syncbn.launch import stop
from syncbn.launch.stop import Stopped
from syncbn.launch.world import current_world
from syncbn.run.check import conf_dir
from syncbn.training import ClassificationTask, GANTask
from tests.ranks import Ranks
from tests.run.here import RunHere, train
from tests.training import fits

BATCHES = 4
SHORT = [
    f"trainer.limit_train_batches={BATCHES}",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=1",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "data.batch_size=16",
    "resume=auto",
]
# What goes together, so that all are walked through in few runs.
TOGETHER = {
    "default": ["callbacks=default"],
    "optional": [
        "callbacks=[default,momentum_schedule,norm_l1,norm_monitor,recalibrate_norm,model_summary]",
        "callbacks.loader_watch.min_batches=1",
        "callbacks.momentum_schedule.start=0.9",
        "callbacks.momentum_schedule.end=0.5",
    ],
    "by_steps": ["callbacks=default", "callbacks.checkpoint.every_n_train_steps=3"],
    "to_the_end": ["callbacks=to_the_end", "trainer.val_check_interval=2"],
    "ema": ["callbacks=[default,ema]"],
    "swa": ["callbacks=[default,swa]"],
    "gradual": [
        *("callbacks=to_the_end", "finetune=gradual", "callbacks.finetune.stages=[net.fc.*,net.linears.1.*]"),
        *("callbacks.finetune.every_n_epochs=1", "callbacks.finetune.frozen_stats_epochs=2"),
    ],
    "gan": [
        *("callbacks=gan", "task=gan", "model=dcgan", "optimizer=adam", "trainer.gradient_clip_val=null"),
        "test=false",  # which trains a classifier on all images
    ],
}
ELSEWHERE = {  # in files of those, or without a state
    *("checkpoint", "early_stopping", "last_checkpoint", "loader_watch", "lr_monitor", "norm_statistics", "plots"),
    *("throughput", "watchdog", "wandb_media", "sample_grids", "none", "norm_profiler"),
}


def test_all_of_them_are_walked_through() -> None:
    named = " ".join(word for words in TOGETHER.values() for word in words)
    files = {file.stem for file in (conf_dir() / "callbacks").glob("*.yaml")}
    assert files - ELSEWHERE == {name for name in files - ELSEWHERE if name in named}


def signal_at(step: str, number: int, patch: pytest.MonkeyPatch) -> None:
    """Send this process SIGTERM in the n-th call of `training_step` or `validation_step`, once."""
    for task in (ClassificationTask, GANTask):
        before, calls = getattr(task, step), []

        def stopped(self: Any, *arguments: Any, before: Any = before, calls: list[int] = calls) -> Any:
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)
                while not stop.requested():
                    time.sleep(0.001)
            return before(self, *arguments)

        patch.setattr(task, step, stopped)


def options(kind: str) -> list[str]:
    return [*SHORT, *TOGETHER[kind]]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The runs that nobody stopped, when they are first asked for."""
    return {"folder": tmp_path_factory.mktemp("wholes")}


@pytest.mark.parametrize("kind", TOGETHER)
@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("training_step", 2),  # in the middle of the first epoch
        ("training_step", BATCHES),  # at its last batch
        ("training_step", BATCHES + 1),  # at the first of the next
        ("validation_step", 1),
        ("validation_step", 4),  # the last one of the run
    ],
)
def test_the_run_goes_on_and_is_the_one_that_was_not_stopped(
    kind: str, step: str, number: int, tmp_path: Path, wholes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind in ("gan", "ema", "swa") and number == BATCHES and step == "validation_step":
        number = 2  # the last one is the run's end there
    if kind not in wholes:
        wholes[kind] = train(wholes["folder"], kind, *options(kind))
    with monkeypatch.context() as patch:
        signal_at(step, number, patch)
        with pytest.raises(Stopped):
            train(tmp_path, "run", *options(kind))
    run = train(tmp_path, "run", *options(kind))
    compare(run, wholes[kind])


def compare(run: RunHere, with_one: RunHere) -> None:
    whole, resumed = with_one.checkpoint(), run.checkpoint()
    assert resumed["global_step"] == whole["global_step"]
    torch.testing.assert_close(resumed["state_dict"], whole["state_dict"], rtol=0, atol=0)
    for key in ("optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0)
    if (with_one.folder / "checkpoints" / "best.ckpt").exists():
        assert run.checkpoint("best")["global_step"] == with_one.checkpoint("best")["global_step"]
    for name in ("train/loss", "val/loss", "test/loss", "lr-SGD/pg1", "train/generator_loss"):
        assert run.column(name) == with_one.column(name)


@pytest.mark.parametrize("steps", [BATCHES + 2, 2 * BATCHES])  # in the middle of an epoch, and at its end
@pytest.mark.parametrize(
    "options", [["callbacks=default"], ["callbacks=[default,recalibrate_norm]", "norm=cross_iteration"]]
)
@pytest.mark.parametrize("killed", [False, True])
def test_the_validation_after_the_last_step_is_repeated(
    steps: int, options: list[str], killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It decides which checkpoint is the best, and tested; Lightning has no step left to come to it."""
    words = [*SHORT, "trainer.max_epochs=-1", f"trainer.max_steps={steps}", *options]
    words.remove("trainer.max_epochs=2")
    whole = train(tmp_path, "whole", *words)
    with monkeypatch.context() as patch:
        if killed:
            fail_at("validation_step", 3, patch)
        else:
            signal_at("validation_step", 3, patch)
        with pytest.raises(InterruptedError if killed else Stopped):
            train(tmp_path, "run", *words)
    for _ in range(2):  # and once is enough
        run = train(tmp_path, "run", *words)
        compare(run, whole)
    assert run.checkpoint()["callbacks"] == whole.checkpoint()["callbacks"]


def fail_at(step: str, number: int, patch: pytest.MonkeyPatch) -> None:
    """Raise an error in the n-th call, as if the process had been killed there."""
    before, calls = getattr(ClassificationTask, step), []

    def failing(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise InterruptedError
        return before(self, *arguments)

    patch.setattr(ClassificationTask, step, failing)


ON_RANKS = [*SHORT, "callbacks=default", "trainer=ddp", "norm=cross_iteration", "data.batch_size=8"]
PLACES = [("training_step", 2), ("training_step", BATCHES), ("validation_step", 1)]


def stopped_on_ranks(folder: Path) -> None:
    """A whole run, and one for each place at which the second rank gets the signal."""
    with fits.launched():
        world = current_world()
        train(folder, "whole", *ON_RANKS, world=world)
        for number, (step, at) in enumerate(PLACES):
            with pytest.MonkeyPatch.context() as patch:
                if world.rank == 1:
                    signal_at(step, at, patch)
                with pytest.raises(Stopped):
                    train(folder, f"at-{number}", *ON_RANKS, world=world)
            train(folder, f"at-{number}", *ON_RANKS, world=world)


@pytest.mark.distributed
def test_two_ranks_with_a_window_of_iterations_go_on(tmp_path: Path, ranks: Callable[[int], Ranks]) -> None:
    ranks(2).run(stopped_on_ranks, tmp_path)
    whole = RunHere(tmp_path / "whole", None)
    assert whole.checkpoint()["global_step"] == 2 * BATCHES
    for number in range(len(PLACES)):
        compare(RunHere(tmp_path / f"at-{number}", None), whole)
