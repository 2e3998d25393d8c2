"""Segmentation: four ranks of two images equal one process of eight, and mIoU is that of all pixels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from syncbn.data import ScenesDataModule
from syncbn.models.fcn import fcn_resnet18
from syncbn.training import SegmentationTask, cosine_with_warmup
from tests.ranks import Ranks
from tests.training import fits


def task() -> SegmentationTask:
    torch.manual_seed(0)
    net = fcn_resnet18("sync", num_classes=11, in_channels=1, stem="cifar", width=4)
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return SegmentationTask(net, optimizer, partial(cosine_with_warmup, warmup_fraction=0.1), num_classes=11)


def fit_and_test(batch_size: int) -> dict[str, Any]:
    with fits.launched():
        module = task()
        data = ScenesDataModule(batch_size=batch_size, num_train=20, num_val=5, num_test=7, eval_batch_size=2, size=16)
        run = fits.trainer(max_epochs=2, precision="64-true", gradient_clip_val=1.0)
        run.fit(module, data)
        logged = {name: value.item() for name, value in run.callback_metrics.items()}
        tested = run.test(module, data, verbose=False)[0]
        return {"net": fits.state(module.net), "metrics": {**logged, **tested}, "confusion": module.confusion_matrix}


@pytest.fixture(scope="module")
def single() -> dict[str, Any]:
    return fit_and_test(8)


@pytest.mark.distributed
def test_four_ranks_are_one_process(ranks: Callable[[int], Ranks], single: dict[str, Any]) -> None:
    """With the optimizer, the schedule and the clipping of experiment=fcn_scenes: see docs/results/scenes.md."""
    for rank in ranks(4).run(fit_and_test, 2):
        assert rank["metrics"] == pytest.approx(single["metrics"], rel=1e-4)
        for key, value in single["net"].items():
            torch.testing.assert_close(rank["net"][key], value, rtol=1e-7, atol=1e-7)


def test_miou_is_scikit_learns_over_all_pixels(single: dict[str, Any]) -> None:
    module = task().double()
    module.net.load_state_dict(single["net"])
    data = ScenesDataModule(num_test=7, size=16)
    images, labels = data.fetch("test", list(range(7)), 0)
    with torch.no_grad():
        predicted = module.eval()(images.double()).argmax(dim=1)

    present = np.union1d(predicted.unique(), labels.unique())
    expected = jaccard_score(labels.flatten(), predicted.flatten(), labels=present, average="macro")
    assert single["metrics"]["test/miou"] == pytest.approx(expected, abs=1e-4)
    assert single["metrics"]["test/acc"] == pytest.approx((predicted == labels).double().mean().item(), abs=1e-4)
    assert int(single["confusion"].sum()) == labels.numel()


def test_miou_can_be_monitored() -> None:
    assert {"val/miou", "val/loss"} <= set(task().monitored_names)
