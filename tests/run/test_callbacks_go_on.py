"""Every callback of `conf/callbacks`, default and optional, through a stop and a resume anywhere in an epoch."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from syncbn.launch import stop
from syncbn.launch.stop import Stopped
from syncbn.run.check import conf_dir
from syncbn.training import ClassificationTask, GANTask
from tests.run.here import train

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
    whole, resumed = wholes[kind].checkpoint(), run.checkpoint()
    assert resumed["global_step"] == whole["global_step"]
    torch.testing.assert_close(resumed["state_dict"], whole["state_dict"], rtol=0, atol=0)
    for key in ("optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0)
    for name in ("train/loss", "val/loss", "test/loss", "lr-SGD/pg1", "train/generator_loss"):
        assert run.column(name) == wholes[kind].column(name)
