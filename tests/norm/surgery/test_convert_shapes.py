"""Conversions warn of what they can't see, and check inputs as the layers before did."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import syncbn
from syncbn.norm.core.attachable import Attachable

NORMS = [name for name in syncbn.available_norms() if not isinstance(syncbn.norm_layer(name)(2), Attachable)]
KINDS: list[tuple[type[nn.Module], set[int]]] = [
    (nn.BatchNorm1d, {2, 3}),
    (nn.BatchNorm2d, {4}),
    (nn.BatchNorm3d, {5}),
]


@pytest.mark.parametrize("name", [name for name in NORMS if name != "none"])
@pytest.mark.parametrize(("kind", "taken"), KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_as_many_dimensions_as_before(name: str, kind: Any, taken: set[int], training: bool) -> None:
    """An image (C, H, W) with H == C isn't a batch of sequences."""
    peer, layer = kind(4).train(training), syncbn.convert(kind(4), name).train(training)
    for dimensions in range(2, 6):
        x = torch.randn(4, 4, 4, 4, 4)[(0,) * (5 - dimensions)]
        assert x.dim() == dimensions
        if dimensions in taken:
            if name in ("instance", "group") and dimensions == 2:
                continue  # without positions a channel, or a group of one, has one value
            assert layer(x).shape == peer(x).shape
            continue
        for refusing in (peer, layer):
            with pytest.raises(ValueError, match=rf"expected .*D.* input \(got {dimensions}D input\)"):
                refusing(x)


@pytest.mark.parametrize("name", ["cross_iteration", "moving_average", "weight", "spectral"])
def test_as_many_dimensions_as_before_behind_a_convolution(name: str) -> None:
    model = syncbn.convert(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), name)
    model(torch.randn(4, 4, 3, 3))
    with pytest.raises(ValueError, match=r"expected .*D input \(got 3D input\)"):
        model(torch.randn(4, 3, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize("name", ["group", "instance", "layer"])
def test_converted_norms_of_torch_are_traced_and_scripted(name: str) -> None:
    # Not behind a convolution, whose output TorchScript takes for 4D without looking.
    model = syncbn.convert(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), name)
    x = torch.randn(4, 4, 4, 4)
    for read in (torch.fx.symbolic_trace, torch.jit.script):
        torch.testing.assert_close(read(model)(x), model(x))
        with pytest.raises(Exception, match="3D input"):
            read(model)(x[0])


def test_layers_of_any_dimensions_stay_so() -> None:
    for layer in (syncbn.convert(nn.SyncBatchNorm(4), "sync"), syncbn.norm_layer("sync")(4)):
        for shape in ((4, 4), (4, 4, 3), (4, 4, 3, 3), (4, 4, 2, 2, 2), (4, 4, 2, 1, 1, 2)):
            layer(torch.randn(shape))
    chained = syncbn.convert(syncbn.convert(nn.BatchNorm2d(4), "sync"), "adaptive")
    with pytest.raises(ValueError, match="expected 4D input"):
        chained(torch.randn(4, 4, 3))


@pytest.mark.parametrize("name", ["sync", "batch", "adaptive", "recurrent", "group"])
def test_an_eps_of_0_is_kept_and_said(name: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, eps=0))
    with pytest.warns(UserWarning, match="1 has eps=0"):
        syncbn.convert(model, name)
    assert model[1].eps == 0
    x = torch.randn(6, 4, 3, 3)
    if name != "group":
        torch.testing.assert_close(model[1].eval()(x), x)
    if name in ("sync", "adaptive"):  # torch's kernels refuse it in training
        centred = x - x.mean([0, 2, 3], keepdim=True)
        torch.testing.assert_close(model[1].train()(x), centred / centred.square().mean([0, 2, 3], keepdim=True).sqrt())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert syncbn.revert(model)[1].eps == 0
        syncbn.convert(model, name, eps=1e-3)
    assert model[1].eps == 1e-3


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.blocks = [nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3))]
        self.byname = {"a": nn.BatchNorm1d(3)}
        self.pair = (nn.ReLU(), nn.BatchNorm1d(3))
        self.known = [self.first, 4, None]


def test_norms_in_plain_containers_are_said() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        syncbn.convert(nn.Sequential(Listed()), "sync")
    told = [str(warning.message) for warning in caught]
    assert len(told) == 3
    for where in (
        "0.blocks[1] is in a plain list",
        "0.byname['a'] is in a plain dict",
        "0.pair[1] is in a plain tuple",
    ):
        assert any(text.startswith(where) for text in told), where


def test_nothing_is_said_of_converted_and_attached_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("cross_iteration", "weight", "moving_average", "sync", "torch"):
            syncbn.convert(model, name)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, image: torch.Tensor, scale: float, *, shift: float = 0.0) -> torch.Tensor:
        if image.sum() == 0:  # no symbolic trace
            return image
        return self.norm(self.conv(image)) * scale + shift


IMAGE = torch.randn(2, 3, 5, 5)


@pytest.mark.parametrize(
    ("example", "forward"),
    [
        ((IMAGE, 2.0), None),
        ({"image": IMAGE, "scale": 2.0, "shift": 1.0}, None),
        (IMAGE, lambda model, image: model(image, 2.0)),
        ([IMAGE, 3.0], lambda model, batch: model(batch[0], scale=batch[1])),
    ],
)
@pytest.mark.parametrize("name", ["cross_iteration", "weight"])
def test_an_example_is_given_as_the_model_takes_it(example: Any, forward: Any, name: str) -> None:
    model = TwoInputs()
    with pytest.raises(ValueError, match="can't trace this model"):
        syncbn.convert(model, name)
    assert type(model.norm) is nn.BatchNorm2d
    syncbn.convert(model, name, example_input=example, forward=forward)
    assert model.norm.is_attached


class Aliased(nn.Module):
    """The same norm as a child, and in plain attributes, by which the forward pass goes."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.bn, self.way = nn.BatchNorm2d(4), way
        object.__setattr__(self, "alias", self.bn)
        self.listed, self.paired = [nn.Identity(), [self.bn]], (None, (self.bn,))
        self.named, self.method = {"a": {"b": self.bn}}, self.bn.forward
        self.named["itself"] = self.named

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used()(x)

    def used(self) -> Any:
        ways = {"alias": self.alias, "listed": self.listed[1][0], "paired": self.paired[1][0], "method": self.method}
        return {**ways, "named": self.named["a"]["b"]}[self.way]


@pytest.mark.parametrize("way", ["alias", "listed", "paired", "named", "method"])
def test_plain_references_to_a_norm_follow_it(way: str) -> None:
    model, x = Aliased(way), torch.randn(6, 4, 3, 3)
    before = model.bn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        syncbn.convert(model, "ghost", ghost_batch_size=2)
    expected = torch.cat([nn.functional.batch_norm(part, None, None, training=True) for part in x.split(2)])
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert getattr(model.used(), "__self__", model.used()) is model.bn
    syncbn.revert(model)
    assert getattr(model.used(), "__self__", model.used()) is model.bn is before
