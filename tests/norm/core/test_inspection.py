"""Code of people whose annotations name what only their type checker imports: without quotes from Python 3.14 on."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import OmegaConf

import syncbn
from syncbn.norm.core.inspection import annotations_of, signature_of
from syncbn.norm.core.options import defaults, mistakes
from syncbn.norm.core.registry import _LAYERS, _OPTIONS, known_options, register
from syncbn.norm.surgery.given import check_given
from syncbn.run.construct import asks_for
from syncbn.run.targets import ALLOWED_VARIABLE
from syncbn.training.schedule import takes_total_steps

GUEST = """
from typing import TYPE_CHECKING

import lightning.pytorch as L
import torch
from torch import nn

if TYPE_CHECKING:
    from elsewhere import Batch, Scale, Schedule, Weights


class Halved(nn.Module):
    def __init__(self, num_features: int, scale: Scale = 0.5, times: int = 2) -> None:
        super().__init__()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, image: Batch, weights: Weights | None = None) -> Batch:
        return self.bn(image)

    def forward_three(self, model: Network, batch: Batch, rest: Batch) -> Batch:
        ...


def two_steps(optimizer: torch.optim.Optimizer, steps: Schedule = 2) -> Schedule:
    ...


def loss(model: Network, batch: Batch) -> Batch:
    return model(batch).square().mean()


class Callback(L.Callback):
    def __init__(self, model: Network | Batch = None, mode: Batch = "min") -> None:
        super().__init__()
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    text = GUEST
    if sys.version_info < (3, 14):
        for name in ("Weights | None", "Network | Batch", "Network", "Schedule", "Batch", "Scale"):
            text = text.replace(f": {name} =", f": '{name}' =").replace(f": {name})", f": '{name}')")
            text = text.replace(f": {name},", f": '{name}',").replace(f"-> {name}:", f"-> '{name}':")
    file: Path = tmp_path_factory.mktemp("guest") / "guest_with_annotations.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[file.stem]


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
        expected = ["times: expected an integer, got 0.5"]
        assert mistakes({"times": 0.5}, known_options()["halved"]) == expected
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
        check_given({"loss": guest.Network().forward_three})


def test_a_schedule_is_asked_for_its_arguments(guest: ModuleType) -> None:
    assert not takes_total_steps(guest.two_steps)


def test_a_config_s_target_is_asked_for_its_arguments(guest: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_VARIABLE, guest.__name__)
    node = OmegaConf.create({"_target_": f"{guest.__name__}.Callback"})
    assert asks_for("model", "callbacks.own", node)
    assert not asks_for("mode", "callbacks.own", node)
