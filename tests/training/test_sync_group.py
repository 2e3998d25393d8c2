"""Norms that synchronize within groups of ranks, in a Lightning fit."""

import pickle
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor

from syncbn.training import SyncBatchNormPlugin, SyncGroup
from tests.ranks import Ranks
from tests.training import fits

pytestmark = pytest.mark.distributed
Pool = Callable[[int], Ranks]
SAMPLES = 32  # a batch of 8 a rank, one step


class KeepImages(L.Callback):
    """Records this rank's training images."""

    images: Tensor

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images = batch[0]


def shallow_fit(size: int | str) -> dict[str, Any]:
    with fits.launched():
        module, kept = fits.task(), KeepImages()
        module.net = fits.shallow_net()
        run = fits.trainer(max_epochs=1, limit_val_batches=0, callbacks=[SyncGroup(size), kept])
        run.fit(module, fits.digits(SAMPLES, batch_size=8))
        pickle.dumps(module.net)  # which a layer with a group refuses
        return {"images": kept.images, "mean": module.net[1].running_mean, "weight": module.net[1].weight.detach()}


def running_mean(images: list[Tensor]) -> Tensor:
    """Running mean after one step, in float64, of the first convolution's output over all images of a group."""
    net = fits.shallow_net()
    with torch.no_grad():
        return 0.1 * net[0](torch.cat(images)).double().mean(dim=(0, 2, 3))


def test_a_groups_running_statistics_are_of_its_own_images(ranks: Pool) -> None:
    results = ranks(4).run(shallow_fit, 2)

    for rank, result in enumerate(results):
        pair = [results[other]["images"] for other in (rank // 2 * 2, rank // 2 * 2 + 1)]
        torch.testing.assert_close(result["mean"].double(), running_mean(pair), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(result["weight"], results[0]["weight"], rtol=0, atol=0)  # DDP's gradients: of all
    assert not torch.equal(results[0]["mean"], results[2]["mean"])


class UsersFit(L.Callback):
    """Records the groups' sizes during the fit, before the plugin reverts the layers."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.sizes = [m.process_group.size() for m in pl_module.modules() if hasattr(m, "conversion")]


def plugin_fit(size: int | str) -> list[int]:
    with fits.launched():
        kept = UsersFit()
        plugin = SyncBatchNormPlugin(sync_group=size)
        run = fits.trainer(max_epochs=1, limit_val_batches=0, plugins=[plugin], callbacks=[kept])
        run.fit(fits.UsersModule(), fits.digits(SAMPLES, batch_size=8))
        return kept.sizes


def test_the_plugin_converts_with_groups(ranks: Pool) -> None:
    assert ranks(4).run(plugin_fit, 2) == [[2, 2]] * 4


def test_a_plugin_of_a_norm_without_ranks_refuses_groups() -> None:
    with pytest.raises(ValueError, match="norm 'group' has no option 'process_group'"):
        SyncBatchNormPlugin("group", sync_group="node")


def refused_fit() -> str:
    with pytest.raises(ValueError, match="doesn't divide") as error:
        shallow_fit(3)
    return str(error.value)


def test_a_size_that_does_not_divide_the_ranks_is_refused(ranks: Pool) -> None:
    assert all("sync_group=3 doesn't divide the 4 rank(s)" in message for message in ranks(4).run(refused_fit))
    with fits.launched(), pytest.raises(ValueError, match=r"sync_group=2 doesn't divide the 1 rank"):
        fits.trainer(max_epochs=1, callbacks=[SyncGroup(2)]).fit(fits.task(), fits.digits(SAMPLES))


def test_on_one_rank_a_node_is_that_rank() -> None:
    with fits.launched():
        module = fits.task()
        fits.trainer(max_epochs=1, limit_val_batches=0, callbacks=[SyncGroup("node")]).fit(module, fits.digits(SAMPLES))
