"""Messages of the plugin for wrong arguments and the wrong Trainer."""

import lightning.pytorch as L
import pytest
import pytorch_lightning
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from syncbn.training import SyncBatchNormPlugin, ddp


def test_a_wrong_norm_or_option_is_answered_at_once() -> None:
    with pytest.raises(ValueError, match="unknown norm 'synk'; did you mean 'sync'"):
        SyncBatchNormPlugin("synk")
    with pytest.raises(ValueError, match="no option 'momentun'; did you mean 'momentum'"):
        SyncBatchNormPlugin(momentun=0.1)


def test_options_reach_the_layers_and_revert_gives_the_model_back() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    plugin = SyncBatchNormPlugin(include="1", eps=0.25)
    originals = list(model.parameters())

    converted = plugin.apply(model)
    assert [type(m).__name__ for m in converted] == ["Conv2d", "SyncBatchNorm", "BatchNorm2d"]
    assert converted[1].eps == 0.25

    reverted = plugin.revert(converted)
    assert [type(m) for m in reverted] == [nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm2d]
    assert all(a is b for a, b in zip(reverted.parameters(), originals, strict=True))


def test_another_trainer_names_the_right_one() -> None:
    with pytest.raises(Exception, match=r"lightning\.pytorch\.Trainer, not pytorch_lightning's"):
        pytorch_lightning.Trainer(accelerator="cpu", plugins=[SyncBatchNormPlugin()], logger=False)


def test_lightnings_own_synchronization_beside_it_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="Choose one or the other"):
        L.Trainer(accelerator="cpu", sync_batchnorm=True, plugins=[SyncBatchNormPlugin()], logger=False)


def test_a_time_out_is_positive() -> None:
    with pytest.raises(ValueError, match="timeout_s must be positive seconds, got 0"):
        ddp(timeout_s=0)
