"""Momentum by torch's and by Keras's convention, and set for a whole model."""

import pytest
import torch
from torch import nn

import syncbn
from syncbn.norm.core.registry import norm_options
from syncbn.norm.surgery.momentum import set_momentum

WITH_MOMENTUM = [name for name in syncbn.available_norms() if "momentum" in norm_options(name)]


def test_keras_counts_the_other_way_round() -> None:
    """Keras: moving = moving · momentum + batch · (1 - momentum)."""
    layer = syncbn.norm_layer("sync", keras_momentum=0.75)(3)
    moving = torch.zeros(3, dtype=torch.float64)
    for _ in range(5):
        x = torch.randn(6, 3)
        layer(x)
        moving = moving * 0.75 + x.double().mean(0) * (1 - 0.75)
    torch.testing.assert_close(layer.running_mean.double(), moving)


@pytest.mark.parametrize("name", WITH_MOMENTUM)
def test_every_norm_with_a_momentum_takes_keras_too(name: str) -> None:
    options = {"decorrelated": {"group_size": 4}}.get(name, {})
    assert repr(syncbn.norm_layer(name, keras_momentum=0.75)) == repr(syncbn.norm_layer(name, momentum=0.25))
    syncbn.norm_layer(name, keras_momentum=0.75, **options)(8)
    with pytest.raises(ValueError, match="not both"):
        syncbn.norm_layer(name, momentum=0.1, keras_momentum=0.9)


def test_convert_takes_keras_momentum_over_the_old_layers() -> None:
    model = syncbn.convert(nn.Sequential(nn.BatchNorm1d(3, momentum=0.3)), "sync", keras_momentum=0.75)
    assert model[0].momentum == 0.25
    assert syncbn.convert(nn.BatchNorm1d(3, momentum=0.3), "sync").momentum == 0.3


def test_wrong_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"keras_momentum must be in \[0, 1\], got 1.5"):
        syncbn.norm_layer("sync", keras_momentum=1.5)
    with pytest.raises(ValueError, match="no option 'keras_momentum'"):
        syncbn.norm_layer("group", keras_momentum=0.9)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\]"):
        set_momentum(nn.BatchNorm1d(3), -0.1)
    with pytest.raises(ValueError, match="no momentum to set"):
        set_momentum(nn.Sequential(nn.GroupNorm(1, 3), nn.BatchNorm1d(3, track_running_stats=False)), 0.1)


def test_a_models_momentum_is_set_at_once() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), syncbn.SyncBatchNorm(3), nn.GroupNorm(1, 3), nn.InstanceNorm1d(3))
    set_momentum(model, 0.02, exclude="1")
    assert (model[0].momentum, model[1].momentum) == (0.02, 0.1)
    assert set_momentum(model, None)[1].momentum is None


@pytest.mark.parametrize("name", ["momentum", "eps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the compiler, where the graph breaks
def test_a_number_may_be_a_tensor(name: str, dtype: torch.dtype, compiles: bool) -> None:
    """As schedules and hyperparameter searches set it."""
    layer, peer = (cls(3).to(dtype) for cls in (syncbn.SyncBatchNorm, nn.BatchNorm1d))
    setattr(layer, name, torch.tensor(0.3))
    setattr(peer, name, 0.3)
    if compiles:
        torch.compiler.reset()
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for each in (torch.compile(layer, backend="aot_eager") if compiles else layer, peer):
        leaf = x.clone().requires_grad_()
        y = each(leaf)
        y.pow(3).sum().backward()
        results.append([y.detach(), leaf.grad])
    torch.testing.assert_close(
        *results, rtol=0.05 if dtype is torch.bfloat16 else 1e-4, atol=1e-2 if dtype is torch.bfloat16 else 1e-5
    )
    for key, buffer in peer.named_buffers():
        torch.testing.assert_close(layer.get_buffer(key).to(buffer.dtype), buffer, rtol=0.02, atol=1e-3)
