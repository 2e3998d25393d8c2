"""Norms of the user's project are choices of `norm=`, imported on demand."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from syncbn.cli.options import listing
from syncbn.norm.core.registry import _LAYERS, _OPTIONS
from syncbn.run.check import import_guests, norm_mistakes
from syncbn.run.command_line import CommandLine
from syncbn.run.compose import checked_configs, config_of
from syncbn.run.errors import UserError
from syncbn.run.folder import load_config

OF_ALL = {"include": None, "exclude": None}  # what every norm's config has beside its options
NORMS = '''
from torch import nn
from syncbn.norm.core.options import Positive, option
from syncbn.norm.core.registry import register
from dataclasses import dataclass

@dataclass
class Declared:
    """Of a dataclass."""
    eps: Positive = option(1e-8, "added")

@register("declared", options=Declared)
class DeclaredNorm(nn.Identity):
    def __init__(self, num_features, eps=Declared.eps):
        super().__init__()
        self.eps = eps

@register("plain")
class PlainNorm(nn.Identity):
    """Of a signature."""
    def __init__(self, num_features: int, factor: float = 0.5, mode: str | None = None):
        super().__init__()
        self.factor = factor
'''


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module of a project."""
    (tmp_path / "with_norms.py").write_text(NORMS)
    (tmp_path / "pyproject.toml").write_text('[tool.syncbn]\npackages = ["with_norms"]\n')
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "plain.yaml").write_text(
        "# @package _global_\ndefaults: [override /norm: plain]\nnorm: {factor: 0.25}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")
    monkeypatch.delenv("SYNCBN_PROJECT", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    import_guests.cache_clear()
    yield tmp_path / "with_norms.py"
    import_guests.cache_clear()
    sys.modules.pop("with_norms", None)
    for name in ("declared", "plain"):
        _LAYERS.pop(name, None)
        _OPTIONS.pop(name, None)


def test_its_norms_are_choices_with_their_options_checked() -> None:
    line = CommandLine(["norm=declared,plain,sync"], multirun=True)
    assert [config["norm"] for config in checked_configs(line)][:2] == [
        {**OF_ALL, "name": "declared", "eps": 1e-8},
        {**OF_ALL, "name": "plain", "factor": 0.5, "mode": None},
    ]
    assert checked_configs(CommandLine(["experiment=plain"]))[0]["norm"]["factor"] == 0.25
    with pytest.raises(UserError, match=r"norm.eps: expected a number above 0, got 0"):
        checked_configs(CommandLine(["norm=declared", "norm.eps=0"]))
    with pytest.raises(
        UserError, match=r"norm.fctor: no such key; did you mean 'factor'\? allowed: exclude, factor, include, mode"
    ):
        checked_configs(CommandLine(["norm=plain", "norm.fctor=0"]))
    with pytest.raises(UserError, match=r"norm=declard: no such choice; did you mean 'declared'"):
        checked_configs(CommandLine(["norm=declard"]))


def test_they_are_listed_with_their_options() -> None:
    assert "factor=0.5" in listing(["norm=plain"])
    (norms,) = [line for line in listing([]).splitlines() if line.startswith("norm ")]
    assert {"declared,", "plain,", "group,"} <= set(norms.split())
    with pytest.raises(UserError, match=r"norm=plian: no such choice; did you mean 'plain'"):
        listing(["norm=plian"])


def test_an_experiment_may_choose_its_norm() -> None:
    (config,) = checked_configs(CommandLine(["experiment=plain", "norm.mode=x"]))
    assert config["norm"] == {**OF_ALL, "name": "plain", "factor": 0.25, "mode": "x"}


def test_a_config_that_names_its_norm_is_checked() -> None:
    assert norm_mistakes({"name": "plain", "factor": 1}) == []
    assert norm_mistakes({"name": "plain", "factor": "a"}) == ["norm.factor: expected a number, got 'a'"]
    assert "did you mean 'plain'?" in norm_mistakes({"name": "plian"})[0]


def test_a_package_that_cannot_be_imported_says_why(package: Path) -> None:
    package.write_text("import torch\nimport no_such_package_at_all\n")
    with pytest.raises(ValueError, match=r"with_norms can't be imported: .*no_such_package_at_all' \(.*, line 2\)"):
        checked_configs(CommandLine(["norm=declared"]))


def test_what_asks_for_none_of_them_is_answered_without_importing_them() -> None:
    program = (
        "import sys\n"
        "sys.argv = ['train.py', 'norm=sync', 'norm.epss=1']\n"
        "from syncbn.cli import run\n"
        "try:\n"
        "    run('train')\n"
        "finally:\n"
        "    print('torch' in sys.modules, 'with_norms' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("defaults: [group, _self_]\ngroups: 4\n", {"groups": 4, "eps": 1e-5, "affine": True}),
        (
            "defaults: [/hydra/options/norm/group@_here_, _self_]\nname: group\neps: 0.1\n",
            {"groups": "auto", "eps": 0.1},
        ),
        ("name: group\ngroups: 2\n", {"groups": 2}),
        ("name: sync\nkeras_momentum: 0.75\n", {"keras_momentum": 0.75}),
        ("name: plain\nfactor: 0.25\n", {"factor": 0.25}),
    ],
)
def test_a_file_of_ones_own_for_a_norm(package: Path, text: str, expected: dict[str, object]) -> None:
    """With the options of another choice, with all options, or with only its own."""
    from omegaconf import OmegaConf

    from syncbn.run.build import build_data, build_network

    (package.parent / "conf" / "norm").mkdir()
    (package.parent / "conf" / "norm" / "mine.yaml").write_text(text)
    (config,) = checked_configs(CommandLine(["norm=mine", "model=mlp"]))
    assert expected.items() <= config["norm"].items()
    composed = OmegaConf.create(config)
    layer = build_network(composed, build_data(composed)).norms[0]
    for name, value in expected.items():
        if hasattr(layer, name) and name != "affine":
            assert getattr(layer, name) == value
    if config["norm"].get("keras_momentum"):
        assert layer.momentum == 0.25


def test_a_module_that_the_package_does_not_import_registers_its_norms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "with_norms.py").unlink()
    (tmp_path / "with_norms" / "layers").mkdir(parents=True)
    for folder in ("with_norms", "with_norms/layers"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "with_norms" / "layers" / "mine.py").write_text(NORMS)
    (tmp_path / "with_norms" / "script.py").write_text("raise SystemExit('imported')")
    assert checked_configs(CommandLine(["norm=plain"]))[0]["norm"]["factor"] == 0.5
    for name in [name for name in sys.modules if name.startswith("with_norms.")]:
        monkeypatch.delitem(sys.modules, name)


def test_a_resolver_of_the_package_is_known(package: Path, tmp_path: Path) -> None:
    register = "\nfrom omegaconf import OmegaConf\nOmegaConf.register_new_resolver('doubled', lambda x: 2 * x)\n"
    package.write_text(NORMS + register)
    word = "data.batch_size=${doubled:8}"
    try:
        assert checked_configs(CommandLine([word]))[0]["data"]["batch_size"] == 16
        with pytest.raises(UserError, match=r"^data.batch_size: Unsupported interpolation type tripled$"):
            checked_configs(CommandLine([word.replace("doubled", "tripled")]))
        OmegaConf.clear_resolver("doubled")  # a run's folder, opened by another process
        import_guests.cache_clear()
        sys.modules.pop("with_norms")
        (tmp_path / "run" / ".hydra").mkdir(parents=True)
        for name in ("declared", "plain"):
            _LAYERS.pop(name), _OPTIONS.pop(name)
        (tmp_path / "run" / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(config_of([word])))
        assert load_config(tmp_path / "run").data.batch_size == 16
    finally:
        OmegaConf.clear_resolver("doubled")
