"""A run that stops in the middle of an epoch and goes on is the run that did not stop."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.ranks import Ranks
from tests.training import fits


def fit(folder: Path, resume: Path | None = None) -> tuple[dict[str, torch.Tensor], float]:
    """Three epochs of 6 steps with a checkpoint every 4 steps, in one process or as a rank of a pool."""
    with fits.launched():
        module = fits.task()
        data = fits.digits(train=96, test=20, batch_size=16)
        every = ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1, auto_insert_metric_name=False)
        run = fits.trainer(max_epochs=3, callbacks=[every], enable_checkpointing=True, limit_val_batches=0)
        run.fit(module, data, ckpt_path=resume)
        return fits.state(module.net), run.callback_metrics["train/loss"].item()


@pytest.mark.parametrize("stop", [4, 8, 12], ids=["first epoch", "second epoch", "between epochs"])
def test_resuming_is_exact(tmp_path: Path, stop: int) -> None:
    whole, loss = fit(tmp_path)

    resumed, resumed_loss = fit(tmp_path, resume=tmp_path / f"{stop}.ckpt")

    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    assert resumed_loss == pytest.approx(loss)


@pytest.mark.distributed
def test_two_ranks_resume_exactly(ranks: Callable[[int], Ranks], tmp_path: Path) -> None:
    whole = ranks(2).run(fit, tmp_path)  # 3 steps an epoch

    resumed = ranks(2).run(fit, tmp_path, tmp_path / "4.ckpt")

    for (expected, loss), (state, resumed_loss) in zip(whole, resumed, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in expected.items())
        assert resumed_loss == pytest.approx(loss)
