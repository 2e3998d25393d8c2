"""The callbacks on a short real training, checked by their files."""

import csv
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import matplotlib.image
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from syncbn.training import ClassificationTask, NormStatisticsRecorder, Plots, WandbMedia
from syncbn.training.callbacks.figures import read_metrics
from syncbn.training.checkpoint import load_checkpoint
from tests.training import fits


def fit(
    folder: Path,
    *callbacks: L.Callback,
    logger: Any = False,
    norm: str = "sync",
    epochs: int = 2,
    resume: Path | None = None,
) -> ClassificationTask:
    """Six steps an epoch, then a test."""
    with fits.launched():
        module = fits.task(norm)
        checkpoints = folder / "checkpoints"
        best = ModelCheckpoint(checkpoints, "best", monitor="val/acc", mode="max", enable_version_counter=False)
        last = ModelCheckpoint(checkpoints, "last", enable_version_counter=False, save_on_train_epoch_end=True)
        run = fits.trainer(
            max_epochs=epochs,
            callbacks=[best, last, *callbacks],
            logger=logger,
            default_root_dir=folder,
            enable_checkpointing=True,
            log_every_n_steps=1,
        )
        data = fits.digits(train=96, test=50, batch_size=16)
        run.fit(module, data, ckpt_path=resume)
        run.test(module, data, verbose=False)
        return module


def test_norm_statistics_are_those_of_the_layers(tmp_path: Path) -> None:
    module = fit(tmp_path, NormStatisticsRecorder(every_n_steps=5))

    with (tmp_path / "norm_statistics.csv").open() as file:
        rows = list(csv.DictReader(file))

    norms = {name: m for name, m in module.named_modules() if hasattr(m, "running_mean")}
    assert [int(row["step"]) for row in rows] == [step for step in (0, 5, 10, 12) for _ in norms]
    assert [row["layer"] for row in rows[: len(norms)]] == list(norms)
    for row in rows[: len(norms)]:
        assert [float(row[key]) for key in ("mean_mean", "mean_std", "var_mean", "var_std")] == [0, 0, 1, 0]
    for row in rows[-len(norms) :]:
        mean, var = norms[row["layer"]].running_mean.numpy(), norms[row["layer"]].running_var.numpy()
        expected = [mean.mean(), mean.std(), var.mean(), var.std()]
        got = [float(row[key]) for key in ("mean_mean", "mean_std", "var_mean", "var_std")]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_goes_on_in_the_same_table(tmp_path: Path) -> None:
    fit(tmp_path, NormStatisticsRecorder(every_n_steps=5))
    fit(tmp_path, NormStatisticsRecorder(every_n_steps=5), epochs=3, resume=tmp_path / "checkpoints" / "last.ckpt")
    with (tmp_path / "norm_statistics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["layer"] == "net.bn1"]
    assert steps == [0, 5, 10, 15, 18]  # as without the end after 12 steps


def test_a_norm_without_running_statistics_has_no_rows(tmp_path: Path) -> None:
    fit(tmp_path, NormStatisticsRecorder(), Plots(), norm="layer")
    assert (tmp_path / "norm_statistics.csv").read_text().splitlines() == [
        "step,layer,mean_mean,mean_std,var_mean,var_std"
    ]
    assert not (tmp_path / "plots" / "norm_statistics.png").exists()


def test_plots_show_what_the_run_wrote(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    fit(tmp_path, NormStatisticsRecorder(), Plots(), logger=logger)

    plots = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert plots == ["accuracy.png", "confusion_matrix.png", "loss.png", "norm_statistics.png"]
    for name in plots:
        picture = matplotlib.image.imread(tmp_path / "plots" / name)
        assert min(picture.shape[:2]) >= 600  # pixels
        assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50  # axes, letters and curves


def test_metrics_are_read_by_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss,val/loss\n0,5,2.0,\n0,5,,1.5\n1,11,1.0,\n1,11,0.75,\n")
    assert read_metrics(path) == {"train/loss": [(5, 2.0), (11, 0.75)], "val/loss": [(5, 1.5)]}


def test_checkpoints_are_tensors_and_plain_types(tmp_path: Path) -> None:
    fit(tmp_path, NormStatisticsRecorder())
    for name in ("best.ckpt", "last.ckpt"):
        assert load_checkpoint(tmp_path / "checkpoints" / name)["state_dict"].keys() == fits.task().state_dict().keys()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb.*")
def test_wandb_gets_predictions_and_histograms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="tests", save_dir=tmp_path, offline=True)
    module = fit(tmp_path, WandbMedia(num_samples=6, every_n_epochs=1), logger=logger)
    logger.experiment.finish()

    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(record)]
    summary = json.loads(subprocess.run(inspect, capture_output=True, text=True, check=True, timeout=60).stdout)

    assert "predictions" in json.dumps(summary)
    assert "norm/net.bn1/running_var" in json.dumps(summary)
    tables = sorted(tmp_path.glob("wandb/offline-run-*/files/media/table/predictions*.json"))
    table = json.loads(tables[-1].read_text())
    assert table["columns"] == ["image", "label", "prediction", "confidence"]
    assert len(table["data"]) == 6
    images, labels = next(iter(fits.digits(test=50).val_dataloader()))
    with torch.no_grad():
        confidence, predicted = module.eval()(images[:6]).softmax(dim=1).max(dim=1)
    assert [row[1] for row in table["data"]] == [str(label) for label in labels[:6].tolist()]
    assert [row[2] for row in table["data"]] == [str(label) for label in predicted.tolist()]
    np.testing.assert_allclose([row[3] for row in table["data"]], confidence, rtol=1e-4)


def test_wandb_media_says_that_there_is_no_wandb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):  # a run before may be quiet
        fit(tmp_path, WandbMedia())
    assert "nothing is sent to W&B, the trainer has no WandbLogger" in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormStatisticsRecorder(every_n_steps=0), "every_n_steps must be at least 1, got 0"),
        (lambda: WandbMedia(num_samples=-1), "num_samples must be at least 0, got -1"),
        (lambda: WandbMedia(every_n_epochs=0), "every_n_epochs must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
