"""Policies on users' norms: derived from ours, registered, or independent."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import syncbn
from syncbn.norm import FrozenBatchNorm, GhostBatchNorm
from syncbn.norm.core import registry
from syncbn.norm.core.moments import Moments
from syncbn.norm.core.tracking import TrackingNorm
from tests.policy.nets import images


class HalfWay(syncbn.SyncBatchNorm):
    """Normalizes by moments half way between the batch's and the running ones."""

    def choose_moments(self, input: Tensor, mask: Tensor | None, group: object) -> Moments:
        batch = super().choose_moments(input, mask, group)
        mean = (batch.mean + self.running_mean.double()) / 2
        var = (batch.m2 / batch.count + self.running_var.double()) / 2
        return Moments(batch.count, mean, var * batch.count)


class Activated(syncbn.SyncBatchNorm):
    """Batch normalization and ReLU."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(input, mask).relu()


class Mixing(TrackingNorm):
    """Divides by one standard deviation for all channels."""

    def forward(self, input: Tensor) -> Tensor:
        return (input - input.mean()) / (input.var() + self.eps).sqrt()


class Scaled(nn.Module):
    """A norm without a norm as base class."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))

    def forward(self, input: Tensor) -> Tensor:
        return input / (input.square().mean() + 1e-5).sqrt() * self.weight.view(-1, 1, 1)


@pytest.fixture
def registered() -> Iterator[type[nn.Module]]:
    """`Scaled`, which norm="scaled" builds."""
    registry.register("scaled")(Scaled)
    yield Scaled
    del registry._LAYERS["scaled"], registry._OPTIONS["scaled"]


def net(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 2, 3))


@pytest.mark.parametrize("norm", [HalfWay, Activated, Mixing])
@pytest.mark.parametrize("method", ["batch", "tent"])
def test_adapt_takes_no_subclass_for_plain_batch_normalization(norm: type[TrackingNorm], method: str) -> None:
    model = net(norm(4))
    with pytest.raises(ValueError, match=f"1 is a {norm.__name__}, which doesn't normalize by its batch alone"):
        syncbn.adapt(model, [images(4)], method=method)


@pytest.mark.parametrize("norm", [HalfWay, Activated, Mixing])
def test_prune_takes_no_channels_of_a_subclass(norm: type[TrackingNorm]) -> None:
    with pytest.raises(ValueError, match="no channel can be removed"):
        syncbn.prune(net(norm(4)), 0.5, images(2))


@pytest.mark.parametrize("norm", [syncbn.SyncBatchNorm, GhostBatchNorm, FrozenBatchNorm, nn.BatchNorm2d])
def test_prune_takes_channels_of_norms_that_are_one_number_a_channel(norm: type[nn.Module]) -> None:
    model = net(norm(4)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, 0.0, 2.0, 0.0]))
        model[1].running_mean.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    pruned = syncbn.prune(model, 0.5, images(2)).eval()
    assert pruned[1].num_features == pruned[0].out_channels == pruned[3].in_channels == 2
    torch.testing.assert_close(pruned(images(3)), model(images(3)))


@pytest.mark.parametrize("norm", [HalfWay, Activated, Mixing])
def test_convert_refuses_a_subclass_whose_forward_would_be_lost(norm: type[TrackingNorm]) -> None:
    with pytest.raises(ValueError, match="has a forward of its own, which a new layer would lose"):
        syncbn.convert(net(norm(4)), "group", groups=2)


def test_freeze_finds_a_registered_norm_of_no_base(registered: type[nn.Module]) -> None:
    model = net(registered(4))
    syncbn.freeze(model, stats=False, affine=True)
    assert not model[1].weight.requires_grad
    assert syncbn.unfreeze(model)[1].weight.requires_grad


def test_a_registered_subclass_is_converted_as_ours_are() -> None:
    registry.register("half_way")(HalfWay)
    try:
        model = net(syncbn.norm_layer("half_way")(4))
        assert type(syncbn.convert(model, "sync")[1]) is syncbn.SyncBatchNorm
        assert type(syncbn.revert(model)[1]) is HalfWay
    finally:
        del registry._LAYERS["half_way"], registry._OPTIONS["half_way"]


def test_a_frozen_norm_in_training_mode_is_no_mistake() -> None:
    model = net(FrozenBatchNorm(4)).eval()
    model[1].train()
    assert "training-mode" not in {warning.identifier for warning in syncbn.inspect(model).warnings}
    plain = net(syncbn.SyncBatchNorm(4)).eval()
    plain[1].train()
    assert "training-mode" in {warning.identifier for warning in syncbn.inspect(plain).warnings}


def test_recalibrate_clears_the_window_of_any_layer_that_has_one() -> None:
    class Windowed(syncbn.SyncBatchNorm):
        cleared = 0

        def clear_window(self) -> None:
            self.cleared += 1

    model = net(Windowed(4))
    syncbn.recalibrate(model, [images(4)])
    assert model[1].cleared == 2  # what the training has left there, and what the recalibration has


def test_a_subclass_that_promises_is_adapted() -> None:
    class Renamed(syncbn.SyncBatchNorm):
        normalizes_by_batch = True

    model, twin = net(Renamed(4)).eval(), net(syncbn.SyncBatchNorm(4)).train()
    syncbn.adapt(model, method="batch")
    torch.testing.assert_close(model(images(4)), copy.deepcopy(twin)(images(4)))
