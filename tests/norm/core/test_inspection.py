"""Code of people whose annotations name what only their type checker imports: without quotes from Python 3.14 on."""

from types import ModuleType

import pytest
import torch

import syncbn
from syncbn.norm.core.inspection import annotations_of, signature_of
from syncbn.norm.core.options import defaults, mistakes
from syncbn.norm.core.registry import _LAYERS, _OPTIONS, known_options, register
from syncbn.norm.surgery.given import check_given
from tests.annotated import annotated

GUEST = """
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from elsewhere import Batch, Scale, Weights


class Halved(nn.Module):
    def __init__(self, num_features: int, scale: <Scale> = 0.5, times: int = 2) -> None:
        super().__init__()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, image: <Batch>, weights: <Weights | None> = None) -> <Batch>:
        return self.bn(image)


def loss(model: Network, batch: <Batch>) -> <Batch>:
    return model(batch).square().mean()


def loss_of_three(model: Network, batch: <Batch>, weights: <Weights>) -> <Batch>:
    return loss(model, batch) * weights
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return annotated(tmp_path_factory.mktemp("guest"), GUEST)


def test_signature_and_annotations_can_be_read(guest: ModuleType) -> None:
    assert list(signature_of(guest.Network().forward).parameters) == ["image", "weights"]
    assert list(annotations_of(guest.Network.forward)) == ["image", "weights", "return"]
    assert annotations_of(guest.Halved) == {}
    with pytest.raises(ValueError, match="no signature"):
        signature_of(type)


def test_a_norm_is_registered_by_its_signature(guest: ModuleType) -> None:
    register("halved")(guest.Halved)
    try:
        assert defaults(known_options()["halved"]) == {"scale": 0.5, "times": 2}
        assert mistakes({"times": 0.5}, known_options()["halved"]) == ["times: expected an integer, got 0.5"]
    finally:
        del _LAYERS["halved"], _OPTIONS["halved"]


def test_a_model_is_called_with_a_batch_of_its_keywords(guest: ModuleType) -> None:
    model, images = guest.Network(), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    syncbn.recalibrate(model.double(), [{"image": images}])
    torch.testing.assert_close(model.bn.running_mean, images.mean((0, 2, 3)))
    with pytest.raises(TypeError, match="Network takes image, weights; the batch has 'pixels'"):
        syncbn.recalibrate(model, [{"pixels": images}])


def test_a_wrong_example_is_told_from_a_mistake_inside(guest: ModuleType) -> None:
    images = torch.randn(4, 3, 2, 2)
    with pytest.raises(TypeError, match="Network can't be called with this example_input"):
        syncbn.fuse(guest.Network().eval(), (images, images, images))


def test_a_function_is_asked_for_its_arguments(guest: ModuleType) -> None:
    check_given({"loss": guest.loss})
    with pytest.raises(TypeError, match="loss must take two arguments"):
        check_given({"loss": guest.loss_of_three})
