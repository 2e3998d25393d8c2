"""The steps of CONTRIBUTING.md, followed in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import REPOSITORY, blocks

PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text()
COPIED = ("syncbn", "conf", "tests", "scripts", "pyproject.toml", "constraints.txt")

USE = """
import torch
from torch import nn
import syncbn
from syncbn.models.resnet import resnet18

assert "pixel" in syncbn.available_norms()
assert syncbn.norm_layer("pixel", eps=1e-6)(4).eps == 1e-6

model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3))
assert type(syncbn.convert(model, "pixel")[1]) is syncbn.norm.PixelNorm and model[1].eps == 1e-3
assert type(syncbn.revert(model)[1]) is nn.BatchNorm2d

net = resnet18("pixel", num_classes=3, width=4, stem="cifar")
assert sum(type(m) is syncbn.norm.PixelNorm for m in net.modules()) == 20
net(torch.randn(2, 3, 8, 8)).sum().backward()
print(syncbn.__file__)
"""


def steps() -> list[str]:
    return re.split(r"^\*\*\d\. ", PAGE.split("## Add a norm")[1], flags=re.MULTILINE)[1:]


def follow(step: str, repository: Path) -> None:
    """Do what a step says to the first file it names: write a new one, or apply its diffs."""
    named = re.findall(r"`((?:syncbn|conf|tests)/[\w/.]+)`", step)
    path = repository / named[0]
    for block in blocks(step):
        if block.language == "diff":
            before = "".join(line[1:] for line in block.text.splitlines(keepends=True) if line[0] in " -")
            after = "".join(line[1:] for line in block.text.splitlines(keepends=True) if line[0] in " +")
            text = path.read_text()
            assert text.count(before) == 1, f"{named[0]} has these lines {text.count(before)} times:\n{before}"
            path.write_text(text.replace(before, after))
        elif block.language in ("python", "yaml"):
            assert not path.exists(), named[0]
            path.write_text(block.text)


def run(repository: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("repository")
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, repository / name)
    for step in steps():
        follow(step, repository)
    return repository


def test_a_norm_is_a_layer_its_options_its_test_and_its_card() -> None:
    assert len(steps()) == 4


def test_the_norm_is_known_to_the_registry_convert_and_the_models(extended: Path) -> None:
    assert run(extended, sys.executable, "-c", USE).strip() == str(extended / "syncbn" / "__init__.py")


def test_the_norm_can_be_chosen_on_the_command_line(extended: Path) -> None:
    shown = run(
        extended, sys.executable, "scripts/train.py", "--cfg", "job", "--resolve", "norm=pixel", "norm.eps=1e-4"
    )
    assert "norm:\n  name: pixel\n  eps: 0.0001\n" in shown


def test_the_linters_have_nothing_to_say(extended: Path) -> None:
    run(extended, sys.executable, "-m", "ruff", "check", "syncbn", "tests/norm")
    run(extended, sys.executable, "-m", "ruff", "format", "--check", "syncbn", "tests/norm")


@pytest.mark.slow
def test_the_tests_that_go_over_every_norm_pass(extended: Path) -> None:
    files = ["tests/norm/core", "tests/config/test_conf.py"]
    options = ["-v", "-p", "no:cacheprovider", "-k", "pixel or every_norm_has"]
    report = run(extended, sys.executable, "-m", "pytest", *options, *files)
    for test in ("by_name[pixel]", "torch[pixel-", "their_defaults[pixel]", "has_a_config_with_its_options"):
        assert re.search(f"{re.escape(test)}.* PASSED", report), report
