"""`track_running_stats` is read at each forward pass, as torch's layers read it, and buffers outlive it."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import syncbn
from tests.norm.test_every_norm import build, images

OF_TORCH = ["batch", "sync"]
TRACKING = [
    name
    for name in syncbn.available_norms()
    if hasattr(build(name)[1], "running_mean") and name not in ("frozen", "recurrent")
]


def switched(model: nn.Module, on: bool) -> None:
    """As consistency training does around its passes on other inputs."""
    for module in model.modules():
        if hasattr(module, "track_running_stats"):
            module.track_running_stats = on


@pytest.mark.parametrize("name", TRACKING)
def test_switched_off_nothing_moves_and_the_output_is_the_same(name: str) -> None:
    model = build(name)
    model(images(0))
    twin = copy.deepcopy(model)
    switched(model, False)
    before = {key: getattr(model[1], key).clone() for key in ("running_mean", "running_var", "num_batches_tracked")}
    torch.testing.assert_close(model(images(1)), twin(images(1)))
    for key, value in before.items():
        torch.testing.assert_close(getattr(model[1], key), value, rtol=0, atol=0)
    switched(model, True)
    moved = model[1].running_var.clone()
    model(images(2))
    assert not torch.equal(model[1].running_var, moved)


@pytest.mark.parametrize("name", OF_TORCH)
@pytest.mark.parametrize("sequence", [(True, False, True), (False, False), (False, True), (True, False)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_any_sequence_is_torch_s(name: str, sequence: tuple[bool, ...], momentum: float | None) -> None:
    layer, peer = syncbn.norm_layer(name, momentum=momentum)(4), nn.BatchNorm1d(4, momentum=momentum)
    for number, on in enumerate(sequence):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(number)) * 3 + 10
        for each in (layer, peer):
            each.train().track_running_stats = on
        torch.testing.assert_close(layer(x), peer(x))
        torch.testing.assert_close(layer.eval()(x), peer.eval()(x))
    torch.testing.assert_close(layer.state_dict(), peer.state_dict())


@pytest.mark.parametrize("name", ["sync", "batch", "ghost", "adaptive", "cross_iteration", "learnable_momentum"])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_a_conversion_keeps_flag_and_buffers(name: str, kind: Any) -> None:
    """Without the buffers, evaluation would go by the batch: off by what the two differ in."""
    model = nn.Sequential(nn.Conv2d(3, 8, 2), kind(8))
    model.eval()
    model[1].running_mean.fill_(3.0)
    model[1].track_running_stats = False
    buffers = dict(model.named_buffers())
    expected = model(images(0))
    syncbn.convert(model, name)
    assert model[1].track_running_stats is False
    torch.testing.assert_close(model(images(0)), expected)
    if name != "adaptive":
        assert dict(model.named_buffers()).keys() >= buffers.keys()
    model.train()(images(1))
    assert torch.equal(model[1].running_mean, torch.full((8,), 3.0))
    model[1].track_running_stats = True
    syncbn.revert(model)
    assert model[1].track_running_stats is True
    assert all(buffer is buffers[key] for key, buffer in model.named_buffers())


@pytest.mark.parametrize("name", ["sync", "batch", "group"])
def test_buffers_that_were_taken_away(name: str) -> None:
    """As test-time adaptation does, to normalize by the batch in evaluation too."""
    model = nn.Sequential(nn.Conv2d(3, 8, 2), nn.BatchNorm2d(8)).eval()
    model[1].track_running_stats, model[1].running_mean, model[1].running_var = False, None, None
    keys, expected = list(model.state_dict()), model(images(0))
    syncbn.convert(model, name)
    if name != "group":
        torch.testing.assert_close(model(images(0)), expected)
        assert list(model.state_dict()) == keys
    syncbn.revert(model)
    torch.testing.assert_close(model(images(0)), expected)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", [name for name in TRACKING if name not in ("adaptive", "batch_renorm")])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_without_the_number_of_batches(name: str, momentum: float | None) -> None:
    """As in models of torch 0.3, and where it is deleted: torch's layer tracks by its momentum, if it has one."""
    model = build(name)
    twin = copy.deepcopy(model)
    model[1].num_batches_tracked = None
    if name != "learnable_momentum":
        model[1].momentum = twin[1].momentum = momentum
    before = model[1].running_var.clone()
    torch.testing.assert_close(model(images(0)), twin(images(0)))
    expected = before if model[1].momentum is None else twin[1].running_var
    torch.testing.assert_close(model[1].running_var, expected)


def test_in_a_compiled_graph_too() -> None:
    torch.compiler.reset()
    layer, peer = syncbn.SyncBatchNorm(4), nn.BatchNorm1d(4)
    compiled: Any = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for number, on in enumerate((True, False, True)):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(number))
        layer.track_running_stats = peer.track_running_stats = on
        torch.testing.assert_close(compiled(x), peer(x))
    torch.testing.assert_close(layer.state_dict(), peer.state_dict())
