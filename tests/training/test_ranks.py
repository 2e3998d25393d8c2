"""Two ranks equal one process with the whole batch: training, metrics, and a user's module with the plugin."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from torch import Tensor

from syncbn.training import SyncBatchNormPlugin
from syncbn.training.checkpoint import load_checkpoint
from tests.ranks import Ranks
from tests.training import fits

pytestmark = pytest.mark.distributed
Pool = Callable[[int], Ranks]


def assert_states_equal(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("samples", "shallow"), [(96, False), (105, False), (97, True)], ids=["full", "unequal", "empty on rank 0"]
)
def test_training_is_the_one_process_training(ranks: Pool, samples: int, shallow: bool) -> None:
    single = fits.fit(32, samples, shallow, precision="64-true")

    both = ranks(2).run(partial(fits.fit, precision="64-true"), 16, samples, shallow)

    for rank in both:
        assert rank["steps"] == single["steps"]
        assert_states_equal(rank["net"], single["net"], tolerance=1e-8)
        assert rank["metrics"] == pytest.approx(single["metrics"], rel=1e-5)


@pytest.mark.parametrize(("samples", "batch_size"), [(359, 32), (5, 1), (1, 1)])
def test_each_test_sample_counts_once(ranks: Pool, samples: int, batch_size: int) -> None:
    data = fits.digits(test=samples)
    images, labels = data.images[data.test_indices].double(), data.labels[data.test_indices].numpy()
    with torch.no_grad():
        probabilities = fits.task().double().eval()(images).softmax(dim=1).numpy()
    predicted = probabilities.argmax(axis=1)

    world = 2 if samples > 1 else 1
    results = ranks(2).run(fits.evaluate, batch_size, samples) if world == 2 else [fits.evaluate(batch_size, samples)]

    for result in results:
        assert result["metrics"]["test/acc"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-6)
        loss = log_loss(labels, probabilities, labels=range(10))
        assert result["metrics"]["test/loss"] == pytest.approx(loss, rel=1e-5)
        np.testing.assert_array_equal(result["confusion"], confusion_matrix(labels, predicted, labels=range(10)))


def test_the_plugin_synchronizes_a_users_module(ranks: Pool, tmp_path: Path) -> None:
    single = fits.fit_with_plugin(32, None, tmp_path)

    both = ranks(2).run(fits.fit_with_plugin, 16, SyncBatchNormPlugin, tmp_path)

    for rank in both:
        assert rank["in_training"] == ["SyncBatchNorm", "SyncBatchNorm"]
        assert rank["after"] == single["after"] == ["BatchNorm2d", "BatchNorm1d"]
        assert_states_equal(rank["state"], single["state"], tolerance=1e-9)
    assert_states_equal(load_checkpoint(tmp_path / "last.ckpt")["state_dict"], single["state"], tolerance=1e-9)


def test_the_plugin_leaves_out_what_is_excluded(ranks: Pool, tmp_path: Path) -> None:
    plugin = partial(SyncBatchNormPlugin, exclude=["head.*"])

    both = ranks(2).run(fits.fit_with_plugin, 16, plugin, tmp_path)

    assert [rank["in_training"] for rank in both] == [["SyncBatchNorm", "BatchNorm1d"]] * 2
    assert [rank["after"] for rank in both] == [["BatchNorm2d", "BatchNorm1d"]] * 2


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0},
    ],
    ids=str,
)
def test_trainer_options_keep_ranks_equal(ranks: Pool, options: dict[str, object]) -> None:
    first, second = ranks(2).run(partial(fits.fit, **options), 16, 105)
    assert_states_equal(first["net"], second["net"], tolerance=0.0)
    assert all(value.isfinite().all() for value in first["net"].values())
    assert first["steps"] == (4 if "accumulate_grad_batches" in options else 8)
    assert first["metrics"]["val/acc"] == second["metrics"]["val/acc"]
