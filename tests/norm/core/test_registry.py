"""Norms have the same name everywhere; messages for wrong names and options suggest the right ones."""

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import syncbn
from syncbn.norm.core.registry import _LAYERS, _OPTIONS, has_bias, register
from syncbn.norm.surgery.feeding import attach_norms


def test_the_names() -> None:
    assert set(syncbn.available_norms()) >= {"batch", "sync", "group", "layer", "instance", "none"}
    assert list(syncbn.available_norms()) == sorted(syncbn.available_norms())


@pytest.mark.parametrize("name", syncbn.available_norms())
def test_every_norm_takes_images_and_is_pickled_by_name(name: str) -> None:
    factory = pickle.loads(pickle.dumps(syncbn.norm_layer(name)))
    assert factory == syncbn.norm_layer(name)
    assert repr(factory) == f"norm_layer({name!r})"
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    net = nn.Sequential(nn.Conv2d(3, 64, 1), factory(64))
    attach_norms(net)
    y = net(x)
    assert y.shape == (2, 64, 5, 5)
    y.square().sum().backward()
    assert x.grad.isfinite().all()


X = torch.randn(4, 8, 5, 3)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("group", {"groups": 2}, lambda x: F.group_norm(x, 2)),
        ("layer", {}, lambda x: F.layer_norm(x, x.shape[1:])),
        ("instance", {}, lambda x: F.instance_norm(x)),
        ("batch", {}, lambda x: F.batch_norm(x, None, None, training=True)),
        ("sync", {}, lambda x: F.batch_norm(x, None, None, training=True)),
        ("none", {}, lambda x: x),
    ],
)
def test_layers_equal_torch(name: str, options: dict[str, int], expected: object) -> None:
    torch.testing.assert_close(syncbn.norm_layer(name, **options)(8)(X), expected(X))


@pytest.mark.parametrize("name", ["group", "layer", "instance", "batch", "sync"])
def test_affine_parameters_are_per_channel(name: str) -> None:
    layer = syncbn.norm_layer(name, **({"groups": 4} if name == "group" else {}))(8)
    assert layer.weight.shape == layer.bias.shape == (8,)
    plain = layer(X)
    with torch.no_grad():
        layer.weight[3], layer.bias[3] = 2.0, 1.0
    expected = plain.clone()
    expected[:, 3] = 2 * plain[:, 3] + 1
    torch.testing.assert_close(layer(X), expected)


def test_layer_norm_of_features_is_torch_layer_norm() -> None:
    x = torch.randn(4, 8)
    torch.testing.assert_close(syncbn.norm_layer("layer")(8)(x), nn.LayerNorm(8)(x))


@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 5), (4, 8, 5, 3), (4, 8, 5, 3, 2)])
def test_batch_takes_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    torch.testing.assert_close(syncbn.norm_layer("batch")(8)(x), F.batch_norm(x, None, None, training=True))
    with pytest.raises(ValueError, match="expected an input"):
        syncbn.norm_layer("batch")(8)(torch.randn(8))


def test_functions_pass_through_and_wrong_types_do_not() -> None:
    assert syncbn.norm_layer(nn.BatchNorm2d) is nn.BatchNorm2d
    with pytest.raises(TypeError, match="a name or a function of num_features, got int"):
        syncbn.norm_layer(3)
    with pytest.raises(TypeError, match="bind them to the function"):
        syncbn.norm_layer(nn.BatchNorm2d, eps=0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("snyc", {}, r"unknown norm 'snyc'; did you mean 'sync'\? allowed: adaptive, batch, "),
        ("zzz", {}, "unknown norm 'zzz'; allowed: adaptive, batch, "),
        ("group", {"group": 4}, r"norm 'group' has no option 'group'; did you mean 'groups'\? allowed: affine, eps"),
        ("none", {"eps": 1}, "norm 'none' has no option 'eps'; allowed: none"),
    ],
)
def test_wrong_names_and_options(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        syncbn.norm_layer(name, **options)


@pytest.mark.parametrize("groups", [3, 0, -4, 16])
def test_wrong_groups(groups: int) -> None:
    with pytest.raises(ValueError, match=rf"groups must divide the 8 channels, got {groups}; allowed: \[1, 2, 4, 8\]"):
        syncbn.norm_layer("group", groups=groups)(8)


def test_has_bias() -> None:
    assert has_bias(syncbn.norm_layer("sync"), 8)
    assert not has_bias(syncbn.norm_layer("sync", bias=False), 8)
    assert not has_bias(syncbn.norm_layer("none"), 8)


def test_a_new_norm_is_known_everywhere_and_a_name_is_taken_once() -> None:
    class Halve(nn.Module):
        def __init__(self, num_features: int, factor: float = 0.5) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * x

    register("halve")(Halve)
    try:
        assert "halve" in syncbn.available_norms()
        assert syncbn.norm_layer("halve", factor=0.25)(3).factor == 0.25
        assert type(syncbn.convert(nn.BatchNorm2d(3), "halve")) is Halve
        with pytest.raises(ValueError, match="registered already"):
            register("halve")(Halve)
    finally:
        del _LAYERS["halve"], _OPTIONS["halve"]
