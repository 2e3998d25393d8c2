"""A `_target_` must be what its place expects; attacks by an untrusted run folder."""

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import syncbn
from syncbn.run import build
from syncbn.run.check import config_mistakes
from syncbn.run.compose import config_of
from syncbn.run.targets import KINDS, checked_object, resolve

GUEST = """
import functools, os, subprocess
from os import system
import torch
from torch import nn
from syncbn.policy import prune
from lightning.pytorch import Callback, LightningDataModule

class Net(nn.Module):
    def __init__(self, num_classes: int = 10, width: int = 4, activation: nn.Module | None = None):
        super().__init__()
        layers = [nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.Linear(width, num_classes)]
        self.net = nn.Sequential(*layers)
    @classmethod
    def wide(cls, num_classes: int = 10): return cls(num_classes, 32)
    def forward(self, x): return self.net(x)

def says_what_it_builds(num_classes: int = 10) -> nn.Module: return Net(num_classes)
def says_it_by_a_string(num_classes: int = 10) -> "Net": return Net(num_classes)
def says_nothing(num_classes=10): return Net(num_classes)
def says_a_name_that_only_type_checkers_know() -> "Unknown": return Net()
def says_something_else() -> int: return 3
def says_that_it_returns_nothing() -> None: raise SystemExit("called")
def returns_something_else(norm=None): return {"not": "a network"}
small = functools.partial(Net, width=2)
shell = functools.partial(os.system, "true")
VALUE = 3

class Recorder(Callback): pass
class NotACallback: pass
class Optimizer(torch.optim.SGD): pass
class Images(LightningDataModule): pass
"""


@pytest.fixture(autouse=True)
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's package, `guest_targets`."""
    (tmp_path / "guest_targets.py").write_text(GUEST)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SYNCBN_ALLOWED_PACKAGES", "guest_targets")
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")
    monkeypatch.setenv("SYNCBN_OUTPUT_ROOT", str(tmp_path))
    yield
    sys.modules.pop("guest_targets", None)


@pytest.mark.parametrize(
    ("where", "target"),
    [
        ("model", "guest_targets.Net"),
        ("model", "guest_targets.Net.wide"),
        ("model", "guest_targets.says_what_it_builds"),
        ("model", "guest_targets.says_it_by_a_string"),
        ("model", "guest_targets.says_nothing"),
        ("model", "guest_targets.says_a_name_that_only_type_checkers_know"),
        ("model", "guest_targets.small"),
        ("model", "guest_targets.nn.Identity"),
        ("model", "torch.nn.Identity"),
        ("model", "syncbn.models.resnet.resnet50"),
        ("model.activation", "torch.nn.ReLU"),
        ("model.metrics[0]", "torchmetrics.MeanMetric"),
        ("model.anything", "guest_targets.NotACallback"),
        ("data.source", "guest_targets.says_something_else"),
        ("data", "guest_targets.Images"),
        ("callbacks.mine", "guest_targets.Recorder"),
        ("callbacks.old", "syncbn.cli.callbacks.throughput_monitor"),  # a path of version 0.1
        ("callbacks.lightnings", "lightning.pytorch.callbacks.Timer"),
        ("optimizer", "guest_targets.Optimizer"),
        ("scheduler", "torch.optim.lr_scheduler.StepLR"),
        ("trainer", "lightning.pytorch.Trainer"),
        ("trainer.strategy", "lightning.pytorch.strategies.FSDPStrategy"),
    ],
)
def test_what_a_place_expects_is_accepted(where: str, target: str) -> None:
    assert config_mistakes_of(where, target) == []
    assert checked_object(where, target) is resolve(target) or target.endswith("wide")


ATTACKS = [
    ("callbacks.x", "syncbn.cli.train.main"),
    ("callbacks.x", "syncbn.cli.train.train"),
    ("callbacks.x", "torch.optim.SGD"),
    ("callbacks.x", "lightning.pytorch.callbacks.timer.time.sleep"),
    ("callbacks.x", "lightning.pytorch.callbacks.Timer.state_dict"),
    ("callbacks.x", "guest_targets.NotACallback"),
    ("callbacks.x", "guest_targets.Net"),
    ("callbacks.x.y", "syncbn.cli.train.main"),
    ("callbacks", "syncbn.cli.train.main"),
    ("logger.x", "syncbn.launch.secrets.guard_the_screen"),
    ("model", "syncbn.policy.prune"),
    ("model", "syncbn.load_run"),
    ("model", "syncbn.models.load_weights"),
    ("model", "syncbn.launch.relaunch.run_under_torchrun"),
    ("model", "syncbn.run.errors.fail"),
    ("model", "torch.nn.utils.prune.custom_from_mask"),
    ("model", "torch.nn.functional.warnings.sys.exit"),
    ("model", "torch.nn.Module.load_state_dict"),
    ("model", "torch.nn.Embedding.from_pretrained"),
    ("model", "torch.nn.modules.module.torch.load"),
    ("model", "torch.hub.load"),
    ("model", "lightning.pytorch.LightningModule.load_from_checkpoint"),
    ("model", "torchmetrics.MeanMetric"),
    ("model", "guest_targets.os.system"),
    ("model", "guest_targets.system"),
    ("model", "guest_targets.subprocess.run"),
    ("model", "guest_targets.torch.load"),
    ("model", "guest_targets.prune"),
    ("model", "syncbn.convert"),
    ("model", "syncbn.norm.surgery.convert.revert"),
    ("model", "guest_targets.shell"),
    ("model", "guest_targets.functools.partial"),
    ("model", "guest_targets.says_something_else"),
    ("model", "guest_targets.says_that_it_returns_nothing"),
    ("model", "guest_targets.Recorder"),
    ("model", "guest_targets.VALUE"),
    ("model", "guest_targets"),
    ("model.part", "syncbn.cli.train.main"),
    ("model.part", "guest_targets.os.system"),
    ("model.list[3]", "torch.nn.functional.warnings.sys.exit"),
    ("data", "torch.load"),
    ("data", "syncbn.data.images.decode"),
    ("data", "guest_targets.Net"),
    ("task", "guest_targets.Net"),
    ("optimizer", "torch.nn.Linear"),
    ("optimizer", "torch.optim.swa_utils.update_bn"),
    ("scheduler", "torch.optim.SGD"),
    ("trainer", "lightning.pytorch.Trainer.fit"),
    ("trainer", "lightning.pytorch.Trainer.save_checkpoint"),
    ("trainer.strategy", "lightning.pytorch.Trainer"),
    ("trainer.profiler", "guest_targets.Recorder"),
]


@pytest.mark.parametrize(("where", "target"), ATTACKS)
def test_what_a_place_does_not_expect_is_refused_before_it_is_called(where: str, target: str) -> None:
    if config_mistakes_of(where, target):
        return  # by its name alone
    with pytest.raises(ValueError, match=r"_target_|has no|no package"):
        checked_object(where, target)


@pytest.mark.parametrize(
    "part",
    [
        {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.functional.warnings.sys.exit"}]},
        {"_target_": "torch.nn.Sequential", "_args_": [[[{"_target_": "syncbn.cli.train.main"}]]]},
        {"_target_": "torch.nn.Sequential", "_recursive_": False, "_args_": [{"_target_": "guest_targets.os.getcwd"}]},
        {"_target_": "guest_targets.Net", "activation": {"_target_": "guest_targets.system", "_args_": ["exit 3"]}},
        {"_target_": "guest_targets.Net", "activation": {"_target_": "builtins.eval", "_partial_": True}},
        {"_target_": "guest_targets.Net", "activation": {"x": [{"_target_": "syncbn.run.errors.fail"}]}},
        {"_target_": "guest_targets.Net", "activation": {"_target_": {"_target_": "os.system"}}},
        {"_target_": "guest_targets.Net", "_partial_": True},
    ],
)
def test_what_is_hidden_in_arguments_is_found(part: dict[str, Any]) -> None:
    config = config_with("model", part)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    if config_mistakes(plain):
        return
    with pytest.raises(ValueError, match="_target_"):
        build.build_network(config, build.build_data(config))


def test_an_interpolation_leads_no_further_than_what_it_stands_for() -> None:
    config = config_with("model", {"_target_": "${tags.0}"})
    config.tags = ["guest_targets.os.system"]
    with pytest.raises(
        ValueError, match=r"model._target_: 'guest_targets.os.system' is from 'posix'; expected a network"
    ):
        build.build_network(config, build.build_data(config))


def test_a_function_that_says_nothing_is_judged_by_what_it_returns() -> None:
    config = config_with("model", {"_target_": "guest_targets.returns_something_else"})
    with pytest.raises(ValueError, match=r"model._target_ returned a dict; expected a network"):
        build.build_network(config, build.build_data(config))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("guest_targets.Nte", r"guest_targets has no 'Nte'; did you mean 'Net'\?"),
        ("torch.nn.Linaer", r"torch.nn has no 'Linaer'; did you mean 'Linear'\?"),
        ("syncbn.models.resnt.resnet50", r"syncbn.models has no 'resnt'; did you mean 'resnet'\?"),
        ("guest_targets.Net.", "isn't the dotted name"),
        ("guest targets.Net", "isn't the dotted name"),
        ("nowhere.Net", "there is no package 'nowhere' here"),
    ],
)
def test_a_misspelt_name_is_answered_with_those_there_are(target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_at_all", r"ModuleNotFoundError: No module named 'nowhere_at_all' \(.*broken_guest.py, line 1"),
        ("def f(:", r"SyntaxError: .*broken_guest.py, line 1"),
        ("x = 1\nx / 0", r"ZeroDivisionError: division by zero \(.*broken_guest.py, line 2\)"),
    ],
)
def test_a_module_that_does_not_import_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken_guest.py").write_text(text)
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=message):
        resolve("broken_guest.Net")


def test_the_functions_of_ours_that_a_config_can_call_are_few_and_build_things() -> None:
    """Every function of the package is tried at every place; only these are accepted."""
    callable_by_configs = set()
    for module in pkgutil.walk_packages(syncbn.__path__, "syncbn."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isfunction(value) and value.__module__ == module.name:
                for where in (*KINDS, "callbacks.x", "logger.x", "model.part"):
                    try:
                        checked_object(where, f"{module.name}.{name}")
                    except ValueError:
                        continue
                    callable_by_configs.add(f"{module.name}.{name}".removeprefix("syncbn."))
    assert callable_by_configs == CALLABLE


CALLABLE = {
    *(f"models.resnet.resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"models.inception.{size}" for size in ("bn_inception", "bn_inception_small")),
    *(f"models.vit.{kind}" for kind in ("vit", "llama_vit")),
    *(f"models.pretrained.from_{package}" for package in ("timm", "torchvision")),
    *(f"models.recurrent.{kind}" for kind in ("lstm", "gru")),
    *(f"models.fcn.fcn_resnet{depth}" for depth in (18, 50)),
    "models.common.conv2d",
    "training.schedule.cosine_with_warmup",
    "training.callbacks.throughput.throughput_monitor",
    "training.loggers.wandb_logger",
    "training.strategy.ddp",
}


def config_mistakes_of(where: str, target: str) -> list[str]:
    """Messages of the check by name for a target at a place."""
    node: Any = {"_target_": target}
    for key in reversed(where.replace("[", ".[").split(".")):
        node = [node] if key.startswith("[") else {key: node}
    from syncbn.run.targets import target_mistakes, targets

    return [line for place, found in targets(node) for line in target_mistakes(place, found)]


def config_with(group: str, node: dict[str, Any]) -> DictConfig:
    config = config_of([])
    config[group] = node
    return config
