"""Values of the wrong kind for the arguments of public functions: one line says it, and the model is as it was."""

import copy
import inspect
import traceback
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import syncbn
from syncbn import policy

BATCH = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3))


CALLS: dict[Callable[..., Any], dict[str, Any]] = {
    syncbn.convert: {"name": "sync"},
    syncbn.revert: {},
    syncbn.fuse: {"example_input": BATCH},
    syncbn.plan_fusion: {"example_input": BATCH},
    syncbn.prune: {"ratio": 0.25, "example_input": BATCH},
    syncbn.plan_prune: {"ratio": 0.25, "example_input": BATCH},
    policy.cost_of: {"example_input": BATCH},
    syncbn.freeze: {},
    syncbn.unfreeze: {},
    syncbn.recalibrate: {"batches": [BATCH]},
    syncbn.adapt: {"batches": [BATCH]},
    policy.Tent: {},
    policy.use_batch_statistics: {},
    policy.use_running_statistics: {},
    syncbn.inspect: {"batches": [BATCH]},
    syncbn.verify: {"batch": BATCH},
}


class Group:
    """No process group."""

    group_name = "0"


MODELS = [
    [nn.BatchNorm2d(4)],
    (nn.BatchNorm2d(4),),
    nn.BatchNorm2d,
    OrderedDict(weight=torch.ones(3)),
    None,
    "model.pt",
]
MODELS += [Path("model.pt"), 3, conv_net, lambda x: x, BATCH, iter([]), types.SimpleNamespace(model=conv_net())]
WRONG: dict[str, list[Any]] = {
    "model": MODELS,
    "include": [3, BATCH, [None], [nn.BatchNorm2d(4)], nn.BatchNorm2d, ["1", 2], {"1": 1, 2: 2}, b"1", object()],
    "process_group": [Group(), 2, "world", [0, 1], torch.device("cpu")],
    "forward": ["forward", 3, [len], BATCH, nn.Linear, lambda batch: batch, lambda: None, functional.cross_entropy],
    "batches": [BATCH, BATCH.numpy(), {"x": BATCH}, "data", 3, conv_net(), TensorDataset(BATCH), DataLoader, len],
    "max_batches": [1.5, "2", [1], True, torch.ones(2)],
    "ratio": ["half", None, [0.5], torch.ones(2), True, 1j],
    "lr": ["1e-3", None, [1e-3], True],
    "steps": [1.5, "2", [1], True],
    "ranks": [2.0, "2", [0, 1], None],
    "stats": ["yes", [True], None, 0.5],
    "name": [None, nn.BatchNorm2d, 3, ["sync"]],
    "tolerance": ["small", None, [1e-3]],
}
WRONG |= {
    "exclude": WRONG["include"],
    "loss": [*WRONG["forward"], nn.CrossEntropyLoss()],
    "reference": WRONG["batches"],
    "affine": WRONG["stats"],
    "episodic": WRONG["stats"],
    "timeout_s": WRONG["tolerance"],
}
CASES = [
    (function, name)
    for function in CALLS
    for name in inspect.signature(function).parameters
    if name not in ("example_input", "batch", "method", "options")  # as the model and the method understand them
]


def id_of(value: Any) -> str:
    return value if isinstance(value, str) else value.__name__


@pytest.mark.parametrize(("function", "name"), CASES, ids=id_of)
def test_a_value_of_the_wrong_kind_is_refused_in_one_line(function: Callable[..., Any], name: str) -> None:
    for wrong in WRONG[name]:
        model = conv_net()
        before = state_of(model)
        with pytest.raises(TypeError) as refused:
            function(**{"model": model, **CALLS[function], name: wrong})
        where = traceback.extract_tb(refused.value.__traceback__)[-1]
        assert (where.line or "").startswith("raise "), f"{wrong!r}: {refused.value} at {where.line}"
        assert "\n" not in str(refused.value)
        assert name in str(refused.value), refused.value
        assert state_of(model) == before


def state_of(model: nn.Module) -> dict[str, Any]:
    """All of a model that a policy may change."""
    found: dict[str, Any] = {key: value.tolist() for key, value in model.state_dict().items()}
    for path, module in model.named_modules():
        hooks = [len(module._forward_hooks), len(module._forward_pre_hooks)]
        found[f"{path} is"] = (type(module), module.training, hooks)
    for path, parameter in model.named_parameters():
        found[f"{path} learns"] = parameter.requires_grad
    return found


@pytest.mark.parametrize("function", [syncbn.freeze, syncbn.unfreeze, syncbn.recalibrate, syncbn.convert])
def test_globs_may_come_from_a_generator(function: Callable[..., Any]) -> None:
    extra: dict[str, Any] = {"affine": True} if function is syncbn.freeze else {}
    model = function(conv_net(), **CALLS[function], include=(glob for glob in ["1"]), **extra)
    assert model.get_submodule("1").weight.requires_grad != bool(extra)


def test_numbers_of_other_libraries_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    model = conv_net()
    smaller = [syncbn.prune(model, ratio, BATCH) for ratio in (0.5, numpy.float32(0.5), torch.tensor(0.5))]
    assert len({str(each) for each in smaller}) == 1
    assert str(smaller[0]) != str(model)
    syncbn.recalibrate(model, [BATCH, BATCH], max_batches=numpy.int64(1))
    syncbn.freeze(model, stats=numpy.bool_(True), affine=numpy.bool_(False))
    norm, before = model.get_submodule("1"), model.get_buffer("1.running_mean").clone()
    model.train()(BATCH)
    assert torch.equal(model.get_buffer("1.running_mean"), before)
    assert all(parameter.requires_grad for parameter in norm.parameters())


class Remembering(nn.Module):
    """Keeps a function of its norm, which a conversion can't change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.used = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        norm = self.norm
        self.function = lambda x: norm(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(self.function(self.conv(x)))


class Functional(nn.Module):
    """Calls batch_norm with its norm's buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training)


@pytest.mark.parametrize("model", [Remembering(), Functional()], ids=["function", "buffers"])
def test_a_layer_that_the_model_calls_otherwise_is_named(model: nn.Module) -> None:
    with pytest.warns(UserWarning, match=r"doesn't reach norm:|calls batch_norm itself|plain function") as told:
        syncbn.convert(copy.deepcopy(model), "sync", example_input=BATCH)
    assert sum("doesn't reach norm:" in str(warning.message) for warning in told) == 1


def test_an_example_that_the_model_refuses_leaves_it_as_it_was() -> None:
    model = conv_net()
    before = state_of(model)
    with pytest.raises(RuntimeError):
        syncbn.convert(model, "sync", example_input=torch.zeros(2, 7, 8, 8))
    assert state_of(model) == before
    with pytest.warns(UserWarning, match="no batch normalization layer to convert"):
        syncbn.convert(nn.Linear(3, 3), "sync")
