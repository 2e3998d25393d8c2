"""Every file under conf/ is composed, checked and instantiated."""

import os
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from syncbn.launch.world import World
from syncbn.norm.core.options import defaults
from syncbn.norm.core.registry import available_norms, known_options, norm_options
from syncbn.run.check import conf_dir
from syncbn.run.command_line import CommandLine
from syncbn.run.compose import checked_configs, config_groups
from syncbn.run.errors import UserError, user_mistakes
from syncbn.run.main_options import Chosen
from tests.data.fashion_mnist import needs_fashion_mnist
from tests.data.image_files import write_images

GROUPS = {group: choices for group, choices in config_groups().items() if group != "wandb"}
NORM_FILES = sorted(path.stem for path in (conf_dir() / "norm").glob("*.yaml"))
ALL = [(group, choice) for group, choices in GROUPS.items() for choice in choices]
COMPANIONS = {
    ("model", "dcgan"): ["task=gan"],
    ("model", "fcn_resnet18"): ["task=segmentation", "data=scenes"],
    ("model", "fcn_resnet50"): ["task=segmentation", "data=scenes"],
    ("task", "gan"): ["model=dcgan"],
    ("task", "segmentation"): ["model=fcn_resnet18", "data=scenes"],
    ("data", "image_folder"): ["data.folder=${output_root}/images"],
    ("experiment", "dcgan_images"): ["data.folder=${output_root}/images"],
}  # required companions of a choice
ELSEWHERE = [  # not available on every machine: each has its own test
    ("trainer", "gpu"),
    ("model", "timm"),
    ("model", "torchvision"),
]
TWO_RANKS = World("torchrun", rank=0, local_rank=0, world_size=2, local_world_size=2, num_nodes=1)
ONE_RANK = World("python", rank=0, local_rank=0, world_size=1, local_world_size=1, num_nodes=1)


def compose_with(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides)


def instantiate(config: DictConfig, world: World) -> None:
    from syncbn.run import build

    data = build.build_data(config)
    net = build.build_network(config, data)
    build.build_task(config, net, data)
    loggers = build.build_loggers(config)
    build.build_trainer(config, build.build_callbacks(config, loggers), loggers, world)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")
    monkeypatch.setenv("SYNCBN_OUTPUT_ROOT", str(tmp_path))


def test_the_groups_are_those_that_users_of_the_template_know() -> None:
    training = {"norm", "model", "data", "task", "optimizer", "scheduler", "trainer"}
    assert set(GROUPS) == training | {"logger", "callbacks", "experiment", "debug", "finetune", "launcher"}
    assert {"default", "cpu", "gpu", "ddp", "ddp_sim"} <= set(GROUPS["trainer"])
    assert {"csv", "wandb", "tensorboard", "many_loggers"} <= set(GROUPS["logger"])
    assert {"default", "fast", "overfit", "profiler"} <= set(GROUPS["debug"])


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        pytest.param(*item, marks=needs_fashion_mnist if "fashion" in item[1] else ())
        for item in ALL
        if item not in ELSEWHERE
    ],
)
def test_every_choice_is_composed_checked_and_instantiated(group: str, choice: str) -> None:
    if choice in ("image_folder", "dcgan_images"):
        write_images(Path(os.environ["SYNCBN_OUTPUT_ROOT"], "images"))
    overrides = [f"{group}={choice}", *COMPANIONS.get((group, choice), [])]
    checked_configs(CommandLine(overrides))
    instantiate(compose_with(overrides), TWO_RANKS if choice == "ddp" else ONE_RANK)


def test_the_gpu_trainer_is_built_on_a_gpu_and_elsewhere_says_that_there_is_none() -> None:
    import torch

    config = compose_with(["trainer=gpu"])
    if torch.cuda.is_available():
        instantiate(config, ONE_RANK)
    else:
        with pytest.raises(UserError, match=r"(?i)gpu|cuda"), user_mistakes():
            instantiate(config, ONE_RANK)


def test_every_norm_has_a_config_with_its_options() -> None:
    assert set(available_norms()) == set(GROUPS["norm"])
    for name in available_norms():
        options = compose_with([f"norm={name}"]).norm
        assert options == {"name": name, **defaults(known_options()[name]), **defaults(Chosen)}
        groups = {"sync_group"} if "process_group" in norm_options(name) else set()
        assert (
            set(options) - {"name", *defaults(Chosen)}
            == set(norm_options(name)) - {"process_group", "device", "dtype"} | groups
        )


@pytest.mark.parametrize("name", NORM_FILES)
def test_a_file_of_a_norm_names_it_says_what_it_is_and_repeats_nothing(name: str) -> None:
    file = conf_dir() / "norm" / f"{name}.yaml"
    comment = " ".join(line.removeprefix("# ") for line in file.read_text().splitlines() if line.startswith("#"))
    assert comment == known_options()[name].__doc__
    assert OmegaConf.load(file) == {"defaults": [f"/hydra/options/norm/{name}@_here_", "_self_"], "name": name}


def test_the_sweep_file_names_keys_of_the_config() -> None:
    sweep = OmegaConf.to_container(OmegaConf.load(conf_dir() / "wandb" / "sweep.yaml"))
    assert isinstance(sweep, dict)
    overrides = []
    for key, choice in sweep["parameters"].items():
        overrides.append(f"{key}={choice['values'][0] if 'values' in choice else choice['min']}")
    assert len(checked_configs(CommandLine(overrides))) == 1


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.functional.warnings.warn",
        "syncbn.run.folder.subprocess.run",
        "lightning.pytorch.callbacks.timer.time.sleep",
    ],
)
def test_what_an_allowed_package_only_imports_is_not_allowed(target: str) -> None:
    from syncbn.run import build

    config = compose_with([])
    config.data = {"_target_": target}
    with pytest.raises(ValueError, match="_target_"):
        build.build_data(config)


@pytest.mark.parametrize("name", ["sync", "moving_average"])
def test_keras_momentum_takes_the_place_of_the_configs_own(name: str) -> None:
    from syncbn.norm.core.momentum import from_keras
    from syncbn.run import build

    config = compose_with([f"norm={name}", "norm.keras_momentum=0.75"])
    net = build.build_network(config, build.build_data(config))
    assert net.bn1.momentum == from_keras(0.75)
    config = compose_with([f"norm={name}", "norm.keras_momentum=0.75", "norm.momentum=0.5"])
    with pytest.raises(UserError, match="not both"), user_mistakes():
        build.build_network(config, build.build_data(config))
