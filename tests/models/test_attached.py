"""Every norm of every network has its preceding convolution attached, or is listed with the reason."""

import warnings

import pytest
import torch
from hydra.utils import get_method
from torch import nn

from syncbn.models.resnet import resnet18, resnet50
from syncbn.norm import CrossIterationBatchNorm, norm_layer
from syncbn.run.check import conf_dir
from syncbn.run.compose import CommandLine, checked_configs

MODELS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
WITHOUT_CHANNEL_NORMS = {"vit", "llama_vit", "lstm", "gru"}  # tokens and time steps
OF_OTHERS = {"timm", "torchvision"}  # tests/models/test_pretrained.py


def norms(net: nn.Module) -> dict[str, CrossIterationBatchNorm]:
    return {name: m for name, m in net.named_modules() if isinstance(m, CrossIterationBatchNorm)}


@pytest.fixture(autouse=True)
def _run_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")


@pytest.mark.parametrize("name", [name for name in MODELS if name not in WITHOUT_CHANNEL_NORMS | OF_OTHERS])
def test_every_norm_of_the_zoo_is_attached(name: str) -> None:
    config = checked_configs(CommandLine([f"model={name}"]))[0]["model"]
    make = get_method(config["_target_"])
    options = {key: value for key, value in config.items() if key not in ("_target_", "weights", "weights_key")}
    sizes = {"in_channels": 1, **({"image_size": 8} if "image_size" in config else {})}
    sizes |= {"num_classes": 10} if "num_classes" in config else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = make(norm=norm_layer("cross_iteration", window=2), **(options | sizes))
    layers = norms(net)
    assert layers
    for layer in layers.values():
        assert layer.is_attached
        assert "no window" not in repr(layer)


@pytest.mark.parametrize("make", [resnet18, resnet50])
def test_norms_without_a_convolution_of_their_own_are_listed(make: object) -> None:
    with pytest.warns(UserWarning, match="go without a convolution") as caught:
        net = make("cross_iteration", stem="cifar", width=4, num_classes=3, placement="pre_activation")
    said = str(caught[0].message)
    alone = [name for name, layer in norms(net).items() if "no window" in repr(layer)]
    assert 0 < len(alone) < len(norms(net))
    for name in alone:
        assert f"{name}: its input comes from" in said
    for _ in range(2):
        net(torch.randn(2, 3, 8, 8)).sum().backward()
