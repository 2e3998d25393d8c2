"""Each option is declared once: signatures, files of `conf/` and other packages' classes agree with it."""

import inspect
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra.utils
import pytest
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from omegaconf import DictConfig, OmegaConf

from syncbn.norm.core.options import Partial, default_of, defaults, kinds, mistakes, option_fields
from syncbn.run.check import conf_dir
from syncbn.run.described import described_targets, options_of
from syncbn.run.main_options import Main
from syncbn.run.options import LAUNCHERS

TARGETS = sorted(described_targets())
OF_DATA = {"num_classes", "in_channels", "image_size"}  # of a network; null stands for the data's
READ_ELSEWHERE = {"weights", "weights_key", "_partial_"}  # by `load_pretrained`, and Hydra
FILES = [
    pytest.param(path, id=f"{path.parent.name}/{path.stem}")
    for path in sorted(conf_dir().glob("*/*.yaml"))
    if path.parent.name not in ("wandb", "experiment", "launcher", "debug", "norm")
]

BLOCKED = """
import sys
for name in ("torch", "lightning", "pytorch_lightning", "torchmetrics", "hydra", "omegaconf", "numpy", "wandb"):
    sys.modules[name] = None  # an import of it raises
from syncbn.norm.core.options import defaults
from syncbn.norm.core.registry import available_norms, our_options
from syncbn.run.described import described_targets
from syncbn.run.main_options import Main
from syncbn.run.options import LAUNCHERS
from syncbn.run.check import norm_mistakes
found = [*our_options().values(), *described_targets().values(), *LAUNCHERS.values(), Main]
print(sum(len(defaults(options)) for options in found) > 300, len(available_norms()))
print(norm_mistakes({"name": "group", "groups": 0}))
"""


def test_all_options_are_read_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0].startswith("True ")
    assert "norm.groups: expected an integer at least 1 or auto, got 0" in done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_a_signature_has_the_declared_options_and_their_defaults(target: str) -> None:
    """Compared by value, since a default in two places would drift."""
    signature = inspect.signature(hydra.utils.get_object(target))
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        signature = inspect.signature(_passed_on_to(target)).replace(parameters=_all_parameters(target))
    arguments = {name: parameter.default for name, parameter in signature.parameters.items()}
    for field in option_fields(described_targets()[target]):
        if field.name in READ_ELSEWHERE or (field.name in OF_DATA and target.startswith("syncbn.models.")):
            continue
        declared = default_of(field)
        actual = arguments[field.name]
        if actual is inspect.Parameter.empty or (declared in ({}, []) and actual in (None, ())):
            continue
        assert _said(actual) == _said(declared), field.name


def _passed_on_to(target: str) -> Any:
    """The function that gets a function's `**options`."""
    from torch.nn.parallel import DistributedDataParallel

    from syncbn.models.resnet import ResNet

    return DistributedDataParallel if target.endswith(".ddp") else ResNet


def _all_parameters(target: str) -> list[inspect.Parameter]:
    inner = inspect.signature(_passed_on_to(target)).parameters
    outer = inspect.signature(hydra.utils.get_object(target)).parameters
    merged = {**inner, **{name: p for name, p in outer.items() if p.kind is not p.VAR_KEYWORD}}
    return sorted((p.replace(kind=p.KEYWORD_ONLY) for p in merged.values()), key=lambda p: p.name)


def _said(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("options", LAUNCHERS.values())
def test_the_launchers_have_submitits_defaults(options: type) -> None:
    theirs = {"LocalLauncher": LocalQueueConf, "SlurmLauncher": SlurmQueueConf}[options.__name__]
    ours = defaults(options)
    assert ours == {key: value for key, value in defaults(theirs).items() if key in ours}


@pytest.mark.parametrize("target", TARGETS)
def test_every_option_of_ours_has_a_line_of_help(target: str) -> None:
    for field in option_fields(described_targets()[target]):
        text = field.metadata["help"]
        assert text, field.name
        assert not text.endswith("."), text


@pytest.mark.parametrize(
    "options", dict.fromkeys([*described_targets().values(), Main]), ids=lambda options: options.__name__
)
def test_a_default_is_of_its_type_and_within_its_bounds(options: type) -> None:
    said = {name: _said(value) for name, value in defaults(options).items()}
    required = set(kinds(options)) - set(said)
    assert not [line for line in mistakes(said, options) if line.partition(":")[0] not in required]


@pytest.mark.parametrize("file", FILES)
def test_a_file_says_what_differs_and_repeats_nothing(file: Path) -> None:
    text = OmegaConf.load(file)
    if not isinstance(text, DictConfig):
        return
    package = "@package _global_" in file.read_text()
    for entry in text.get("defaults", []):
        target, _, place = str(entry).removeprefix("/hydra/options/").partition("@")
        if not str(entry).startswith("/hydra/options/"):
            continue
        assert options_of(target) is not None, target
        place = place.removeprefix("_global_.") if package else place
        said = text if place == "_here_" else OmegaConf.select(text, place)
        declared = defaults(options_of(target))
        for key, value in OmegaConf.to_container(said or OmegaConf.create(), resolve=False).items():
            if key in declared:
                assert type(value) is not type(declared[key]) or value != _said(declared[key]), (file, key)
            assert key not in ("_target_", "_partial_"), (file, key)
    assert not [target for target in _targets(OmegaConf.to_container(text)) if options_of(target)], "name its options"


def _targets(node: Any) -> list[str]:
    if not isinstance(node, dict):
        return []
    own = [node["_target_"]] if "_target_" in node else []
    return own + [target for child in node.values() for target in _targets(child)]


def test_the_top_has_the_values_that_old_run_folders_go_on_with() -> None:
    text = OmegaConf.to_container(OmegaConf.load(conf_dir() / "train.yaml"), resolve=False)
    assert isinstance(text, dict)
    declared = {key: value for key, value in defaults(Main).items() if key not in ("scheduler", "logger", "callbacks")}
    assert {key: text[key] for key in declared} == declared


def test_what_is_called_later_is_so_in_every_config_of_it() -> None:
    assert {name for name, options in described_targets().items() if issubclass(options, Partial)} == {
        *("torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW"),
        *("syncbn.training.cosine_with_warmup", "syncbn.training.schedule.cosine_with_warmup"),
    }


def test_paths_of_version_0_1_lead_to_their_options() -> None:
    assert options_of("syncbn.training.task.ClassificationTask") is options_of("syncbn.training.ClassificationTask")
    assert options_of("syncbn.cli.callbacks.throughput_monitor") is not None
    assert options_of("somebody.Elses") is None


def test_a_square_root_of_two_has_the_digits_that_it_had() -> None:
    """`conf/model/mlp.yaml` keeps the ones that results were made with."""
    text = OmegaConf.load(conf_dir() / "model" / "mlp.yaml")
    assert text.init_gain == 1.4142136 != math.sqrt(2)
