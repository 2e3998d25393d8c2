"""Layers behave as their capabilities declare."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import syncbn
from syncbn.norm import FrozenBatchNorm, GhostBatchNorm, RecurrentBatchNorm
from syncbn.norm.core import capabilities
from syncbn.norm.core.registry import available_norms, norm_layer, registered_layers
from syncbn.norm.core.tracking import TrackingNorm
from tests.norm.oracle import normalize

WITHOUT_FEEDER = {"cross_iteration": {"window": 1}, "moving_average": {"centre": False}}


def built(name: str) -> nn.Module:
    return norm_layer(name, **WITHOUT_FEEDER.get(name, {}))(32)


def says(capability: str) -> set[str]:
    return {name for name in available_norms() if getattr(capabilities, capability)(built(name))}


def test_which_layer_says_what() -> None:
    assert says("normalizes_by_batch") == {"batch", "sync"}
    assert says("is_per_channel") == {"batch", "sync", "cross_iteration", "ghost", "frozen"}
    assert says("takes_step") == {"recurrent"}
    assert says("learns_momentum") == {"learnable_momentum"}
    tracking = {name for name in available_norms() if isinstance(built(name), TrackingNorm)}
    assert says("tracks_batch") == tracking - {"frozen"}
    assert says("synchronizes") == tracking - {"frozen", "batch", "ghost"}


@pytest.mark.parametrize("name", sorted(set(available_norms()) - {"weight", "spectral"}))
def test_which_layer_does_what(name: str) -> None:
    """Checked by a training step's output and state, for statistics far from the batch's."""
    torch.manual_seed(0)
    layer = built(name).train()
    x = 3 * torch.randn(6, 32, 4, 4) + 5
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    output = layer(x)
    if capabilities.normalizes_by_batch(layer):
        expected = normalize(x.double(), torch.ones(32), torch.zeros(32), 1e-5)
        torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5)
    moved = any(not torch.equal(value, before[key]) for key, value in layer.state_dict().items() if "running" in key)
    assert moved == capabilities.tracks_batch(layer)
    if capabilities.is_per_channel(layer):
        tensors = [*layer.parameters(), *layer.buffers()]
        assert all(tensor.shape in ((32,), ()) for tensor in tensors)
        other = x.clone()
        other[:, 0] *= 2  # another channel's input
        fresh = built(name).train()
        assert torch.equal(fresh(other)[:, 1:], output[:, 1:])
    assert not capabilities.synchronizes(layer) or hasattr(layer, "process_group")


def test_torch_s_own_layers() -> None:
    plain, synchronized, instance = nn.BatchNorm2d(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4)
    assert capabilities.normalizes_by_batch(plain)
    assert capabilities.normalizes_by_batch(synchronized)
    assert not capabilities.normalizes_by_batch(instance)
    assert capabilities.synchronizes(synchronized)
    assert not capabilities.synchronizes(plain)
    assert capabilities.tracks_batch(plain)
    assert not capabilities.tracks_batch(nn.BatchNorm2d(4, track_running_stats=False))
    assert not capabilities.tracks_batch(nn.Conv2d(4, 4, 1))
    assert not any(getattr(capabilities, name)(nn.ReLU()) for name in ("is_per_channel", "takes_step"))


def test_cross_iteration_synchronizes_unless_its_option_says_no() -> None:
    assert capabilities.synchronizes(syncbn.CrossIterationBatchNorm(4))
    assert not capabilities.synchronizes(syncbn.CrossIterationBatchNorm(4, sync=False))


@pytest.mark.parametrize("base", [syncbn.SyncBatchNorm, GhostBatchNorm, FrozenBatchNorm, RecurrentBatchNorm])
def test_promises_about_a_class_are_not_inherited(base: type[Any]) -> None:
    class Mine(base):
        """A subclass that may do anything."""

    assert not capabilities.normalizes_by_batch(Mine(4))
    assert not capabilities.is_per_channel(Mine(4))
    assert capabilities.synchronizes(Mine(4)) == capabilities.synchronizes(base(4))
    assert capabilities.takes_step(Mine(4)) == capabilities.takes_step(base(4))

    class Promised(base):
        is_per_channel = True

    assert capabilities.is_per_channel(Promised(4))


def test_attributes_of_any_layer_are_believed() -> None:
    class Foreign(nn.Module):
        synchronizes = True

        def __init__(self) -> None:
            super().__init__()
            self.cleared = 0

        def clear_window(self) -> None:
            self.cleared += 1

        def forward(self, input: Tensor) -> Tensor:
            return input

    layer = Foreign()
    assert capabilities.synchronizes(layer)
    capabilities.clear_window(layer)
    assert layer.cleared == 1
    capabilities.clear_window(nn.ReLU())


def test_registered_layers_are_classes_of_norms() -> None:
    available_norms()
    assert {syncbn.SyncBatchNorm, GhostBatchNorm} <= set(registered_layers())
    assert nn.Identity not in registered_layers()
