"""Weights files as they are published: names, prefixes, counters, heads, stems, and invalid ones."""

import argparse
import copy
import datetime
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import syncbn
from syncbn.models import load_weights
from tests.ranks import Ranks


class Plain(nn.Module):
    """A user's network, without an attribute for its head."""

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.out = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.bn(self.conv(x)).mean((2, 3)))


class FrozenNorm(nn.Module):
    """detectron2's layer: only buffers, and no counter."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(4))


class WithNet(nn.Module):
    """A network with a part that is named like a wrapper's."""

    def __init__(self, name: str = "net") -> None:
        super().__init__()
        self.add_module(name, Plain())
        self.tail = nn.Linear(5, 2)


def randomized(model: nn.Module, seed: int = 1) -> nn.Module:
    """Randomize all weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.rand(value.shape, generator=generator) * 9 + 1)
    return model


def saved(content: Any, folder: Path, name: str = "w.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def has(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "net.", "_orig_mod.", "model.module.", "module.model._orig_mod.", "net.module.net.model."],
)
@pytest.mark.parametrize("name", [None, "state_dict", "model", "model_state_dict", "network"])
def test_prefixes_are_taken_off_in_any_order(tmp_path: Path, prefix: str, name: str | None) -> None:
    state = randomized(Plain()).state_dict()
    content = prefixed(state, prefix)
    model = Plain()
    said = load_weights(model, saved({name: content, "epoch": 3} if name else content, tmp_path))
    assert has(model, state)
    named = prefix.replace("_orig_mod.", "")
    assert f"prefix {named!r} taken off" in said or not named


@pytest.mark.parametrize("name", ["net", "model", "module", "_orig_module"])
@pytest.mark.parametrize("around", ["", "module.", "net.", "model.net."])
def test_a_network_with_such_an_attribute_reads_its_own_file(tmp_path: Path, name: str, around: str) -> None:
    state = randomized(WithNet(name)).state_dict()
    model = WithNet(name)
    load_weights(model, saved(prefixed(state, around), tmp_path))
    assert has(model, state)


@pytest.mark.parametrize("within", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_of_parts_are_taken_off(tmp_path: Path, within: str) -> None:
    state = randomized(WithNet()).state_dict()
    content = {key.replace("net.", f"net.{within}."): value for key, value in state.items()}
    model = WithNet()
    load_weights(model, saved(content, tmp_path))
    assert has(model, state)


def test_wrapped_networks_take_plain_files(tmp_path: Path) -> None:
    state = randomized(Plain()).state_dict()
    path = saved(state, tmp_path)
    parallel, compiled = nn.DataParallel(Plain()), torch.compile(Plain(), backend="eager")
    load_weights(parallel, path)
    load_weights(compiled, path)
    assert has(parallel.module, state)
    assert has(compiled._orig_mod, state)


def test_averaged_models_say_so(tmp_path: Path) -> None:
    averaged = AveragedModel(Plain(), use_buffers=True)
    averaged.update_parameters(randomized(Plain()))
    averaged.update_parameters(randomized(Plain(), seed=2))
    model = Plain()
    said = load_weights(model, saved(averaged.state_dict(), tmp_path))
    assert "an average of 2 models" in said
    assert has(model, averaged.module.state_dict())


def test_plain_weights_are_taken_before_averaged_ones_unless_asked_for(tmp_path: Path) -> None:
    plain, averaged = randomized(Plain(), 1).state_dict(), randomized(Plain(), 2).state_dict()
    path = saved({"state_dict_ema": averaged, "state_dict": plain, "optimizer": {"state": {}}}, tmp_path)
    model = Plain()
    said = load_weights(model, path)
    assert has(model, plain)
    assert "its state_dict (there are key=state_dict_ema, too)" in said
    load_weights(model, path, key="state_dict_ema")
    assert has(model, averaged)
    only = saved({"model_ema": prefixed(averaged, "module."), "epoch": 1}, tmp_path, "ema.pth")
    assert "its model_ema" in load_weights(Plain(), only)


def test_a_state_inside_of_another_name_is_found(tmp_path: Path) -> None:
    state = randomized(Plain()).state_dict()
    model = Plain()
    load_weights(model, saved({"model": {"state_dict": state, "arch": "plain"}}, tmp_path))
    assert has(model, state)


def test_several_states_of_no_usual_name_are_asked_about(tmp_path: Path) -> None:
    state = randomized(Plain()).state_dict()
    path = saved({"student": state, "teacher": state}, tmp_path)
    with pytest.raises(ValueError, match="choose one by key='student', key='teacher'"):
        load_weights(Plain(), path)
    with pytest.raises(ValueError, match=r"has no state_dict 'teachr'; did you mean 'teacher'\?"):
        load_weights(Plain(), path, key="teachr")
    with pytest.raises(ValueError, match="is one state_dict, without a name: leave key='student' out"):
        load_weights(Plain(), saved(state, tmp_path, "bare.pth"), key="student")
    model = Plain()
    load_weights(model, path, key="teacher")
    assert has(model, state)


@pytest.mark.parametrize("change", ["shaped", "absent", "unwanted"])
def test_counters_of_other_versions(tmp_path: Path, change: str) -> None:
    state = randomized(Plain()).state_dict()
    model = Plain()
    if change == "shaped":
        content = {k: v.reshape(1) if k.endswith("tracked") else v for k, v in state.items()}
    elif change == "absent":
        content = {k: v for k, v in state.items() if not k.endswith("tracked")}
    else:
        content = dict(state)
        model.bn = FrozenNorm()
    load_weights(model, saved(content, tmp_path))
    assert torch.equal(model.bn.running_mean, state["bn.running_mean"])
    if change == "shaped":
        assert has(model, state)
    if change == "absent":
        assert model.bn.num_batches_tracked == 0


@pytest.mark.parametrize("file_classes", [1000, 1])
def test_the_last_layer_is_the_head_of_any_network(tmp_path: Path, file_classes: int) -> None:
    state = randomized(Plain(classes=file_classes)).state_dict()
    model = Plain()
    before = copy.deepcopy(model.out.state_dict())
    said = load_weights(model, saved(state, tmp_path))
    assert f"out.weight, out.bias made anew, for 5 classes where the file has {file_classes}" in said
    assert has(model.out, before)
    assert torch.equal(model.conv.weight, state["conv.weight"])


def test_auxiliary_heads_go_with_the_head(tmp_path: Path) -> None:
    def net(classes: int) -> nn.Module:
        return nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1), "aux": nn.Linear(4, classes), "out": nn.Linear(4, classes)})

    said = load_weights(net(5), saved(randomized(net(9)).state_dict(), tmp_path))
    assert "aux.weight, aux.bias, out.weight, out.bias made anew" in said


def test_a_layer_inside_of_another_width_is_no_head(tmp_path: Path) -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 5))

    with pytest.raises(ValueError, match=r"3 of another shape: 0\.weight"):
        load_weights(net(4), saved(net(6).state_dict(), tmp_path))


@pytest.mark.parametrize(("file", "own"), [(3, 1), (3, 4), (1, 3), (3, 6)])
def test_the_first_convolution_sees_grey_and_more_channels_as_before(tmp_path: Path, file: int, own: int) -> None:
    source = randomized(Plain(channels=file)).eval()
    model = Plain(channels=own).eval()
    said = load_weights(model, saved(source.state_dict(), tmp_path))
    assert f"conv.weight adapted from {file} to {own} channels" in said
    grey = torch.rand(2, 1, 5, 5)
    scale = 1 if own == 1 else own / file  # a mean over channels, so that the output keeps its size
    expected = source.conv(grey.expand(-1, file, -1, -1))
    if own % file == 0 or own == 1:
        found = model.conv(grey.expand(-1, own, -1, -1))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    else:
        torch.testing.assert_close(model.conv.weight[:, :file] * scale, source.conv.weight)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda s: prefixed(s, "backbone."), r"its keys begin with 'backbone\.', the network's don't"),
        (lambda s: prefixed(s, "module.encoder_q."), r"its keys begin with 'module\.encoder_q\.'"),
        (lambda s: {f"layer{i}.weight": torch.zeros(1) for i in range(100)}, "layer4.weight and 95 more$"),
    ],
    ids=["another prefix", "a prefix under a prefix", "another network"],
)
def test_errors_name_the_prefix_and_not_a_hundred_keys(tmp_path: Path, make: Any, said: str) -> None:
    model = Plain()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=said):
        load_weights(model, saved(make(randomized(Plain()).state_dict()), tmp_path))
    assert has(model, before)


def test_a_file_for_a_part_says_so(tmp_path: Path) -> None:
    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Plain()

    with pytest.raises(ValueError, match=r"the network's keys begin with 'backbone\.', the file's don't"):
        load_weights(Task(), saved(Plain().state_dict(), tmp_path))


def test_what_lies_beside_the_network_is_said(tmp_path: Path) -> None:
    state = randomized(Plain()).state_dict()
    content = prefixed(state, "model.") | {"criterion.weight": torch.zeros(5)}
    model = Plain()
    assert "left out, beside 'model.': criterion.weight" in load_weights(model, saved(content, tmp_path))
    assert has(model, state)


def test_tied_weights_may_be_saved_once(tmp_path: Path) -> None:
    def net() -> nn.Module:
        model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
        model["b"].weight = model["a"].weight
        return model

    value = torch.rand(3, 3)
    model = net()
    load_weights(model, saved({"a.weight": value}, tmp_path))
    assert torch.equal(model["b"].weight, value)


def test_networks_that_hold_no_numbers_yet_are_refused(tmp_path: Path) -> None:
    path = saved(Plain().state_dict(), tmp_path)
    with torch.device("meta"):
        empty = Plain()
    with pytest.raises(ValueError, match=r"conv.weight is on the meta device and has no values: model.to_empty"):
        load_weights(empty, path)
    for wrong in (None, {}, Plain, Plain().state_dict()):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got"):
            load_weights(wrong, path)  # type: ignore[arg-type]
    lazy = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(ValueError, match=r"0.weight has no shape yet: run the model once"):
        load_weights(lazy, path)


def test_a_network_that_refuses_in_the_middle_is_as_it_was(tmp_path: Path) -> None:
    class Refuses(Plain):
        def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
            rest[-1].append("not on a Saturday")

    model = Refuses()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"doesn't fit Refuses: .*"):
        load_weights(model, saved(randomized(Plain()).state_dict(), tmp_path))
    assert has(model, before)


def test_a_network_that_changes_what_it_loads_is_refused(tmp_path: Path) -> None:
    class Halves(nn.Linear):
        def _load_from_state_dict(self, *args: Any) -> None:
            super()._load_from_state_dict(*args)
            with torch.no_grad():
                self.weight.mul_(0.5)

    with pytest.raises(ValueError, match="after loading, weight of the network isn't what the file has"):
        load_weights(Halves(2, 2), saved(nn.Linear(2, 2).state_dict(), tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in randomized(Plain()).state_dict().items()}
    model = Plain()
    load_weights(model, saved(OrderedDict(state), tmp_path, "w.pth.tar"))
    assert has(model, {k: v.float() if v.is_floating_point() else v for k, v in state.items()})


def load_into_wrapped(path: Path) -> bool:
    state = torch.load(path, weights_only=True)
    compiled = torch.compile(DistributedDataParallel(Plain()), backend="eager")
    load_weights(compiled, path)
    return has(compiled._orig_mod.module, state)


def test_a_compiled_ddp_takes_plain_files(tmp_path: Path, ranks: Callable[[int], Ranks]) -> None:
    path = saved(randomized(Plain()).state_dict(), tmp_path)
    assert ranks(1).run(load_into_wrapped, path) == [True]
    parallel = torch.compile(nn.DataParallel(Plain()), backend="eager")
    load_weights(parallel, path)
    assert has(parallel._orig_mod.module, torch.load(path, weights_only=True))


def test_what_checkpoints_hold_beside_tensors_is_no_hindrance(tmp_path: Path) -> None:
    """timm, DeiT and MAE save their arguments, others scores of numpy."""
    state = randomized(Plain()).state_dict()
    content = {
        "model": state,
        "args": argparse.Namespace(lr=0.1, folder=tmp_path),
        "best": np.float64(71.5),
        "history": {"loss": np.ones(3, dtype=np.float32)},
        "when": datetime.datetime(2020, 1, 1),
    }
    model = Plain()
    load_weights(model, saved(content, tmp_path))
    assert has(model, state)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_tensors_in_another_form_are_tensors(tmp_path: Path) -> None:
    state = randomized(Plain()).state_dict()
    model = Plain()
    load_weights(model, saved({key: value.numpy() for key, value in state.items()}, tmp_path))
    assert has(model, state)
    said = load_weights(model, saved({"state_dict": {**state, "epoch": 3}}, tmp_path))
    assert ", without its epoch" in said
    linear = nn.Linear(2, 2, bias=False)
    load_weights(linear, saved({"weight": torch.eye(2).to_sparse()}, tmp_path))
    assert torch.equal(linear.weight, torch.eye(2))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace(_method)?` is deprecated")
def test_a_scripted_model_is_not_called_damaged(tmp_path: Path) -> None:
    torch.jit.trace(Plain().eval(), torch.zeros(1, 3, 5, 5)).save(str(tmp_path / "w.pt"))
    with pytest.raises(ValueError, match=r"is a TorchScript archive: read it with torch\.jit\.load"):
        load_weights(Plain(), tmp_path / "w.pt")


def test_a_network_that_is_in_the_file_twice_is_not_chosen_by_its_name(tmp_path: Path) -> None:
    state = randomized(Plain()).state_dict()
    other = randomized(Plain(), seed=2).state_dict()
    model = Plain()
    load_weights(model, saved({**prefixed(state, "model."), **prefixed(state, "net.")}, tmp_path))
    assert has(model, state)
    with pytest.raises(ValueError, match=r"are in the file under 'net\.' and under 'model\.', with other numbers"):
        load_weights(model, saved({**prefixed(state, "model."), **prefixed(other, "net.")}, tmp_path))
    assert has(model, state)


class Scaled(nn.Linear):
    """A layer with an extra state."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.scale = 1.0

    def get_extra_state(self) -> dict[str, float]:
        return {"scale": self.scale}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_extra_states_are_loaded(tmp_path: Path, prefix: str) -> None:
    source, model = nn.Sequential(Scaled()), nn.Sequential(Scaled())
    source[0].scale = 7.0
    content = prefixed(source.state_dict(), prefix)
    load_weights(model, saved(content, tmp_path))
    assert model[0].scale == 7.0
    assert "left out: 0._extra_state" in load_weights(nn.Sequential(nn.Linear(2, 2)), saved(content, tmp_path))
    weight = model[0].weight.clone()
    with pytest.raises(ValueError, match="doesn't fit Sequential: 'scale'"):
        load_weights(
            model, saved({**content, f"{prefix}0.weight": weight + 1, f"{prefix}0._extra_state": {}}, tmp_path)
        )
    assert torch.equal(model[0].weight, weight)
    assert model[0].scale == 7.0


def test_the_memory_of_our_norms_is_no_weight(tmp_path: Path) -> None:
    def net() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        return syncbn.convert(model, "cross_iteration", example_input=torch.zeros(2, 3, 2, 2))

    source, model = net(), net()
    source(torch.randn(4, 3, 2, 2))
    before = model[1].get_extra_state()
    load_weights(model, saved(source.state_dict(), tmp_path))
    assert repr(model[1].get_extra_state()) == repr(before)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.full((2, 2), 1e6), r"1 beyond the network's dtype: weight \(torch\.float32 in the file, torch\.float16"),
        (torch.eye(2) * 1j, r"1 beyond the network's dtype: weight \(torch\.complex64"),
        (torch.empty(2, 2, device="meta"), "1 without values, on the meta device: weight"),
    ],
    ids=["too large", "complex", "meta"],
)
def test_numbers_that_would_be_lost_are_refused(tmp_path: Path, value: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_weights(nn.Linear(2, 2, bias=False).half(), saved({"weight": value}, tmp_path))


def test_a_key_is_a_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="key must be a str, got 0"):
        load_weights(Plain(), saved({"a": {}}, tmp_path), key=0)  # type: ignore[arg-type]
