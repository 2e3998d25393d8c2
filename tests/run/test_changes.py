"""A run that goes on is compared with its folder before anything is written."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from syncbn.run.changes import Change, changes_since
from syncbn.run.errors import UserError
from syncbn.run.resume import Checkpoint
from tests.run.here import train

BEFORE: dict[str, Any] = {
    "seed": 0,
    "norm": {"name": "sync", "eps": 1e-5, "sync_group": "world"},
    "model": {"_target_": "syncbn.models.mlp.MLP", "hidden": [128], "weights": None},
    "data": {"_target_": "syncbn.data.Digits", "batch_size": 32, "num_workers": 0},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9},
    "scheduler": {"_target_": "syncbn.training.cosine_with_warmup", "final_fraction": 0.0},
    "trainer": {"_target_": "lightning.pytorch.Trainer", "max_epochs": 2, "devices": 1},
    "task": {"_target_": "syncbn.training.ClassificationTask", "label_smoothing": 0.1},
    "callbacks": {
        "early_stopping": {
            "_target_": "lightning.pytorch.callbacks.EarlyStopping",
            "monitor": "val/loss",
            "patience": 5,
        }
    },
    "logger": None,
    "run_id": "a",
    "resume": None,
    "tags": ["dev"],
}


def compared(folder: Path, **now: Any) -> list[Change]:
    """What differs when some of the keys, `group__key` for `group.key`, have other values; `...` takes one out."""
    (folder / ".hydra").mkdir(exist_ok=True)
    OmegaConf.save(OmegaConf.create(BEFORE), folder / ".hydra" / "config.yaml")
    config = OmegaConf.create(BEFORE)
    for key, value in now.items():
        OmegaConf.update(config, key.replace("__", "."), value, merge=False)
    plain: Any = OmegaConf.to_container(config)
    return changes_since(Checkpoint(folder / "checkpoints" / "last.ckpt", 1, 1), plain)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optimizer__lr", 0.001, "optimizer.lr 0.1 -> 0.001"),
        ("trainer__max_epochs", 10, "trainer.max_epochs 2 -> 10"),
        ("trainer__max_steps", 10, "trainer.max_steps -1 -> 10"),
        ("trainer__devices", 2, "trainer.devices 1 -> 2"),
        ("scheduler__final_fraction", 0.1, "scheduler.final_fraction 0.0 -> 0.1"),
        ("callbacks__early_stopping__patience", 9, "callbacks.early_stopping.patience 5 -> 9"),
        ("callbacks__plots", {"_target_": "syncbn.training.Plots"}, "callbacks.plots added"),
        ("callbacks__early_stopping", None, "callbacks.early_stopping left out"),
        ("logger", {"csv": {"_target_": "x"}}, "logger added"),
        ("data__num_workers", 2, "data.num_workers 0 -> 2"),
        ("norm__sync_group", 1, "norm.sync_group world -> 1"),
        ("task__label_smoothing", 0.0, "task.label_smoothing 0.1 -> 0.0"),
        ("nan_policy", "skip", "nan_policy null -> skip"),
    ],
)
def test_what_can_change_is_said(key: str, value: Any, said: str, tmp_path: Path) -> None:
    (change,) = compared(tmp_path, **{key: value})
    assert str(change) == said


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("norm__name", "group", "resume: norm.name was sync and is group"),
        ("norm__eps", 0.1, "resume: norm.eps was 1e-5 and is 0.1"),
        ("norm__momentum", 0.5, "resume: norm.momentum was 0.1 and is 0.5"),
        ("model__hidden", [64], "resume: model.hidden"),
        ("model___target_", "syncbn.models.cnn.CNN", "resume: model._target_"),
        ("data___target_", "syncbn.data.Shapes", "resume: data._target_"),
        ("optimizer___target_", "torch.optim.Adam", "resume: optimizer._target_"),
        ("scheduler", None, "resume: scheduler"),
        ("task___target_", "syncbn.training.GANTask", "resume: task._target_"),
        ("seed", 1, "resume: seed was 0 and is 1"),
        ("callbacks__finetune", {"_target_": "syncbn.training.TrainOnly"}, "resume: callbacks.finetune"),
    ],
)
def test_what_a_checkpoint_cannot_follow_is_refused_by_name(key: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        compared(tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run_id", "renamed"),
        ("resume", "auto"),
        ("tags", ["other"]),
        ("output_root", "elsewhere"),
        ("trainer__max_steps", -1),  # the default, which an older version hasn't written
        ("norm__momentum", 0.1),
        ("norm__include", None),
        ("task___target_", "syncbn.training.task.ClassificationTask"),  # a path of before
    ],
)
def test_what_is_the_same_is_not_said(key: str, value: Any, tmp_path: Path) -> None:
    if key == "task___target_":
        assert [change.key for change in compared(tmp_path, task___target_="syncbn.training.ClassificationTask")] == []
        return
    assert compared(tmp_path, **{key: value}) == []


def test_a_folder_without_a_config_is_not_compared(tmp_path: Path) -> None:
    assert changes_since(Checkpoint(tmp_path / "checkpoints" / "last.ckpt", 1, 1), BEFORE) == []
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("[1, 2")
    assert changes_since(Checkpoint(tmp_path / "checkpoints" / "last.ckpt", 1, 1), BEFORE) == []


def times(folder: Path) -> dict[Path, int]:
    """When each file was written, but for those that say who writes."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != ".lock"]
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_refused_run_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    run = train(tmp_path, "run")
    files = times(run.folder)
    for options in (["norm=group"], ["model=cnn"], ["optimizer=adam"], ["model.hidden_size=32"], ["seed=3"]):
        with pytest.raises(UserError, match="which the run's checkpoint can't follow"):
            train(tmp_path, "run", "resume=auto", "trainer.max_epochs=2", *options)
    (run.folder / ".hydra" / "config.yaml").rename(run.folder / ".hydra" / "away.yaml")
    with pytest.raises(UserError, match=r"is of another network: net\.norms\.0\..* there and absent here"):
        train(tmp_path, "run", "resume=auto", "trainer.max_epochs=2", "norm=group")
    (run.folder / ".hydra" / "away.yaml").rename(run.folder / ".hydra" / "config.yaml")
    assert times(run.folder) == files


def test_another_learning_rate_is_taken_up_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rates and weights are those of a run whose optimizer was given the rate by hand at the same place."""
    train(tmp_path, "run", "optimizer.lr=0.1", "scheduler=constant", "scheduler.warmup_fraction=0")
    options = ["scheduler=constant", "scheduler.warmup_fraction=0", "trainer.max_epochs=2", "resume=auto"]
    run = train(tmp_path, "run", "optimizer.lr=0.001", "callbacks.early_stopping.patience=7", *options)
    out = capsys.readouterr().out
    assert "changed:       " in out
    assert "optimizer.lr 0.1 -> 0.001" in out
    assert "callbacks.early_stopping.patience 20 -> 7" in out
    rates = run.column("lr-SGD/pg1")
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.001)
    state = run.checkpoint()
    assert [group["lr"] for group in state["optimizer_states"][0]["param_groups"]] == pytest.approx([0.001, 0.001])
    assert state["lr_schedulers"][0]["base_lrs"] == pytest.approx([0.001, 0.001])
    assert [s["patience"] for key, s in state["callbacks"].items() if key.startswith("EarlyStopping")] == [7]


def test_a_batch_size_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "run", "data.batch_size=32")
    run = train(tmp_path, "run", "data.batch_size=64", "trainer.max_epochs=2", "resume=auto")
    assert "batch size:    stays 32" in capsys.readouterr().out
    assert run.checkpoint()["global_step"] == 68
    assert OmegaConf.load(run.folder / ".hydra" / "config.yaml").data.batch_size == 32


def test_the_best_of_several_is_best(tmp_path: Path) -> None:
    """For every `save_top_k`, and through a stop in between."""
    for k in (1, 2, -1):
        options = [f"callbacks.checkpoint.save_top_k={k}", "optimizer.lr=0.3", "resume=auto", "~scheduler"]
        train(tmp_path, f"run{k}", *options, "trainer.max_epochs=2")
        run = train(tmp_path, f"run{k}", *options, "trainer.max_epochs=4")
        losses = run.column("val/loss")
        names = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
        kept = [name for name in names if name.startswith("best-epoch")]
        assert len(kept) == {1: 0, 2: 2, -1: 4}[k]
        best = run.checkpoint("best")
        assert best["global_step"] == 34 * (1 + losses.index(min(losses)))
        scores = [
            state["best_model_score"] for state in run.checkpoint()["callbacks"].values() if "best_model_score" in state
        ]
        assert min(float(score) for score in scores if score is not None) == pytest.approx(min(losses))


def test_nothing_depends_on_where_a_folder_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best score is kept where a folder was renamed, and a finished run is tested by the file in it."""
    run = train(tmp_path, "first", "trainer.max_epochs=2")
    best = min(run.column("val/loss"))
    run.folder.rename(tmp_path / "second")
    assert "first" not in str(
        torch.load(tmp_path / "second" / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    )
    train(tmp_path, "second", "trainer.max_epochs=2", "resume=auto")
    assert "changed:" not in capsys.readouterr().out
    worse = train(
        tmp_path, "second", "trainer.max_epochs=3", "resume=auto", "optimizer.lr=30", "trainer.gradient_clip_val=null"
    )
    assert worse.column("val/loss")[-1] > best
    assert worse.checkpoint("best")["global_step"] == 34 * (1 + worse.column("val/loss").index(best))
