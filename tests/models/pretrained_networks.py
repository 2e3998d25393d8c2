"""Checks of `tests/models/test_pretrained.py` that need timm and torchvision."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import syncbn
from syncbn.models.pretrained import from_timm, from_torchvision
from syncbn.models.resnet import resnet50


def logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(images)


def with_statistics(model: nn.Module) -> nn.Module:
    """Randomize the norms, as if the network had been trained."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(std=0.1, generator=generator)
    return model


def batch_norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def write_torchvision_weights() -> nn.Module:
    """Write ResNet-18's weights to torchvision's cache."""
    from torchvision.models import ResNet18_Weights, resnet18

    torch.manual_seed(1)
    model = with_statistics(resnet18())
    folder = Path(torch.hub.get_dir(), "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / Path(ResNet18_Weights.DEFAULT.url).name)
    return model


def compare_torchvision() -> None:
    from torchvision.models import mobilenet_v2
    from torchvision.models import resnet50 as torchvisions_resnet50

    images = torch.randn(2, 3, 48, 64)
    original = write_torchvision_weights()
    same = from_torchvision("sync", num_classes=1000)
    assert all(isinstance(layer, syncbn.SyncBatchNorm) for layer in batch_norms(same))
    torch.testing.assert_close(logits(same, images), logits(original, images))

    other = from_torchvision("sync", num_classes=7, in_channels=1)
    assert logits(other, images[:, :1]).shape == (2, 7)
    del other.fc, same.fc
    other.fc = same.fc = nn.Identity()
    torch.testing.assert_close(logits(other, images[:, :1]), logits(same, images[:, :1].expand(-1, 3, -1, -1)))

    large = with_statistics(torchvisions_resnet50())
    ours = resnet50("batch")
    ours.load_state_dict(large.state_dict(), strict=True)
    torch.testing.assert_close(logits(ours, images), logits(large, images))

    torch.manual_seed(0)
    small = from_torchvision("sync", 1000, architecture="mobilenet_v2", pretrained=False)
    torch.manual_seed(0)
    torch.testing.assert_close(logits(small, images), logits(mobilenet_v2(), images))
    assert len(from_torchvision("sync", 5, architecture="mobilenet_v2", pretrained=False).classifier[-1].weight) == 5

    for architecture, message in {
        "resnet19": "unknown architecture 'resnet19'; did you mean 'resnet18'",
        "vit_b_16": "vit_b_16 has no batch norm",
        "inception_v3": "inception_v3 doesn't take images|inception_v3 returns InceptionOutputs",
    }.items():
        with pytest.raises(ValueError, match=message):
            from_torchvision("sync", 10, 3, (96, 96), architecture, pretrained=False)
    with pytest.raises(ValueError, match="in_channels must be 1 or 3"):
        from_torchvision("sync", in_channels=2, pretrained=False)


def compare_timm() -> None:
    import timm
    from huggingface_hub import constants
    from safetensors.torch import save_file

    images = torch.randn(2, 3, 64, 64)
    torch.manual_seed(1)
    original = with_statistics(timm.create_model("resnet18", pretrained=False))
    place = Path(constants.HF_HUB_CACHE, "models--timm--resnet18.a1_in1k")  # as the hub's own package keeps files
    (place / "snapshots" / "0").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0")
    save_file(original.state_dict(), place / "snapshots" / "0" / "model.safetensors")

    same = from_timm("sync", num_classes=1000, architecture="resnet18.a1_in1k")
    assert all(isinstance(layer, syncbn.SyncBatchNorm) for layer in batch_norms(same))
    torch.testing.assert_close(logits(same, images), logits(original, images))
    grey = from_timm("sync", num_classes=4, in_channels=1, architecture="resnet18.a1_in1k")
    assert logits(grey, images[:, :1]).shape == (2, 4)

    # An activation inside of the norm, and an eps of its own, which the usual eps of the norm leaves alone.
    torch.manual_seed(0)
    efficient = with_statistics(timm.create_model("tf_efficientnet_lite0", num_classes=10))
    torch.manual_seed(0)
    made = from_timm(syncbn.norm_layer("sync", eps=1e-5), 10, architecture="tf_efficientnet_lite0", pretrained=False)
    assert {layer.eps for layer in batch_norms(made)} == {1e-3}
    torch.testing.assert_close(logits(with_statistics_of(efficient, made), images), logits(efficient, images))
    unusual = from_timm(syncbn.norm_layer("sync", eps=0.5), 10, architecture="tf_efficientnet_lite0", pretrained=False)
    assert {layer.eps for layer in batch_norms(unusual)} == {0.5}

    crossing = from_timm("cross_iteration", 10, 3, 64, "resnet18", pretrained=False)
    assert all(layer.is_attached for layer in batch_norms(crossing))
    crossing.train()(images).sum().backward()

    with pytest.raises(ValueError, match="vit_tiny_patch16_224 has no batch norm"):
        from_timm("sync", architecture="vit_tiny_patch16_224", pretrained=False)
    with pytest.raises(ValueError, match="unknown architecture 'resnet17'; did you mean 'resnet1"):
        from_timm("sync", architecture="resnet17")
    with pytest.raises(ValueError, match=r"can't fetch the weights of resnet34.a1_in1k .*model.pretrained=false"):
        from_timm("sync", architecture="resnet34.a1_in1k")
    with pytest.raises(TypeError, match="expected a norm's name"):
        from_timm(nn.BatchNorm2d, pretrained=False)


def with_statistics_of(source: nn.Module, target: nn.Module) -> nn.Module:
    state = {**target.state_dict(), **source.state_dict()}
    target.load_state_dict(state)
    return target


if __name__ == "__main__":
    if sys.argv[1] == "cache":
        write_torchvision_weights()
    else:
        {"timm": compare_timm, "torchvision": compare_torchvision}[sys.argv[1]]()
        print(f"{sys.argv[1]}: all compared")
