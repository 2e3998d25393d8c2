"""The monitor measures during training what `syncbn.inspect` would, and warns once."""

import copy
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor

import syncbn
from syncbn.training import NormMonitor
from tests.ranks import Ranks
from tests.training import fits


class Twin(L.Callback):
    """Records the network and the batch before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            self.net, self.images = copy.deepcopy(pl_module.net), batch[0]


def fit(callbacks: list[L.Callback], logger: Any = False, batch_size: int = 16, norm: str = "sync") -> Any:
    with fits.launched():
        module = fits.task(norm)
        run = fits.trainer(max_epochs=2, callbacks=callbacks, logger=logger, log_every_n_steps=1)
        run.fit(module, fits.digits(train=96, batch_size=batch_size))
        return module


@pytest.mark.filterwarnings("ignore:.*slow-momentum")
def test_the_logged_measures_are_those_of_the_first_layer(tmp_path: Path) -> None:
    twin = Twin(step=5)
    module = fit([NormMonitor(every_n_steps=5), twin], CSVLogger(tmp_path, name="", version=""))
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["norm/net.bn1/gap"]]
    assert [int(row["step"]) for row in rows] == [0, 5, 10]
    expected = syncbn.inspect(twin.net, [twin.images]).rows[0]  # what comes before it doesn't normalize
    for name in ("mean_distance", "std_ratio", "gap", "dead"):
        assert float(rows[1][f"norm/net.bn1/{name}"]) == pytest.approx(float(getattr(expected, name)), rel=1e-4)
    assert not any(m._forward_pre_hooks for m in module.modules())


def test_watching_changes_nothing() -> None:
    with pytest.warns(UserWarning, match="slow-momentum"):
        watched = fits.state(fit([NormMonitor(every_n_steps=1)]))
    plain = fits.state(fit([]))
    assert all(torch.equal(watched[key], plain[key]) for key in plain)


@pytest.mark.filterwarnings("ignore:.*slow-momentum")
def test_small_batches_are_warned_of_once_a_layer() -> None:
    with pytest.warns(UserWarning, match="few-samples") as caught:
        fit([NormMonitor(every_n_steps=1)], batch_size=8, norm="batch")
    few = [str(w.message) for w in caught if "few-samples" in str(w.message)]
    assert len(few) == len(set(few)) > 0
    assert "net.layer4.1.bn2: batches have 8 values of a channel on a rank" in few[-1]
    assert "(docs/warnings/few-samples.md)" in few[-1]


def monitored_state(every_n_steps: int) -> dict[str, Tensor]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*slow-momentum")
        warnings.filterwarnings("ignore", message=".*few-samples")
        monitor = NormMonitor(every_n_steps)
        state = fits.state(fit([monitor], batch_size=8))
        assert monitor.report is not None
        assert monitor.report.rows[0].samples == 16 * 64
        return state


@pytest.mark.distributed
def test_on_ranks_it_measures_the_batch_of_all(ranks: Callable[[int], Ranks]) -> None:
    first, second = ranks(2).run(monitored_state, 3)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb.*", "ignore:.*slow-momentum")
def test_wandb_gets_the_report_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="tests", save_dir=tmp_path, offline=True)
    fit([NormMonitor()], logger)
    logger.experiment.finish()
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(record)]
    summary = json.dumps(json.loads(subprocess.run(inspect, capture_output=True, check=True, timeout=60).stdout))
    assert "norm_report" in summary
    assert "norm/net.bn1/gap" in summary


def test_an_interval_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        NormMonitor(0)
