"""Weights from files: torchvision's naming, other numbers of classes, damaged, foreign and hostile files."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from syncbn.models import load_weights
from syncbn.models.resnet import resnet18
from tests.models.test_resnet import expected_shapes, functional_resnet


def small(**options: Any) -> nn.Module:
    return resnet18(**{"num_classes": 7, "width": 4, **options})


def other(**options: Any) -> dict[str, Tensor]:
    """State of another such network, which differs from `small()` in all numbers."""
    return {key: value + 1 for key, value in small(**options).state_dict().items()}


def save(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def test_a_file_of_torchvisions_keys_gives_its_logits(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {  # written from the paper's table, full size
        key: torch.zeros((), dtype=torch.long)
        if key.endswith("tracked")
        else torch.rand(shape, generator=generator) * 0.1 + 0.01
        for key, shape in expected_shapes("resnet18").items()
    }
    model = resnet18()

    said = load_weights(model, save(state, tmp_path / "resnet18.pth"))

    assert "122 tensors" in said
    x = torch.rand(1, 3, 40, 40, generator=generator, dtype=torch.float64)
    wide = {key: value.double() for key, value in state.items()}
    strides = {"layer1": 1, "layer2": 2, "layer3": 2, "layer4": 2}
    expected = functional_resnet(wide, x, strides=strides, imagenet=True)
    torch.testing.assert_close(model.double().eval()(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.ckpt", "w.safetensors"])
def test_every_kind_of_file_is_read(tmp_path: Path, name: str) -> None:
    model, state = small(), other()
    load_weights(model, save(state, tmp_path / name))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"net.{k}": v for k, v in state.items()} | {"metric.sum": torch.zeros(1)}},
        lambda state: {key: value for key, value in state.items() if "num_batches_tracked" not in key},
        lambda state: {**state, "bn1._extra_state": {"slots": []}},
    ],
    ids=["state_dict", "model", "ddp", "compiled ddp", "a task's checkpoint", "torch 0.4", "extra state"],
)
def test_what_others_put_around_the_keys_is_taken_off(tmp_path: Path, wrap: Any) -> None:
    model, state = small(), other()
    torch.save(wrap(state), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, state[key]), key


def test_another_number_of_classes_leaves_the_head_as_it_is_and_says_so(tmp_path: Path) -> None:
    model, state = small(num_classes=7), other(num_classes=9)
    head = model.fc.weight.clone()

    said = load_weights(model, save(state, tmp_path / "w.pth"))

    assert "fc.weight, fc.bias made anew, for 7 classes where the file has 9" in said
    assert torch.equal(model.fc.weight, head)
    assert torch.equal(model.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_every_key_that_does_not_fit_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    model, state = small(), other()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    del state["bn1.weight"], state["fc.bias"]
    state |= {"extra.weight": torch.zeros(1), "conv1.weight": torch.zeros(4, 3, 3, 3)}

    with pytest.raises(ValueError, match="doesn't fit ResNet") as caught:
        load_weights(model, save(state, tmp_path / "w.pth"))

    assert "2 missing: bn1.weight, fc.bias" in str(caught.value)
    assert "1 unexpected: extra.weight" in str(caught.value)
    assert "1 of another shape: conv1.weight ((4, 3, 3, 3) in the file, (4, 3, 7, 7) in the network)" in str(
        caught.value
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("touched-by-a-pickle"),)


def test_a_file_that_would_run_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Hostile()}, "w.pth")
    with pytest.raises(ValueError, match="is not a file of tensors, and is not read further"):
        load_weights(small(), "w.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Hostile(), protocol=2))
    with pytest.raises(ValueError, match="is not a file of tensors"):
        load_weights(small(), "plain.pth")
    assert not Path("touched-by-a-pickle").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    path = save(other(), tmp_path / name)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"is damaged|is not a file of tensors"):
        load_weights(small(), path)


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        load_weights(small(), tmp_path / "nowhere.pth")
    (tmp_path / "w.onnx").touch()
    with pytest.raises(ValueError, match=r"read from .pth, .pt, .ckpt, .bin, .tar or .safetensors files"):
        load_weights(small(), tmp_path / "w.onnx")
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds no state_dict"):
        load_weights(small(), tmp_path / "w.pth")
