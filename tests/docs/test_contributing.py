"""The walks of CONTRIBUTING.md, executed in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import REPOSITORY, blocks
from tests.docs.walks import WALKS, paths, steps

COPIED = ("syncbn", "science", "benchmarks", "conf", "tests", "scripts", "docs", "pyproject.toml", "constraints.txt")
# Number of files of each walk, including the page or card.
FILES = {
    "norm": 5,  # and its row in the table
    "option that norms share": 3,
    "policy": 4,
    "data set": 5,
    "model": 6,
    "callback": 5,
    "command": 2,
}

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

layer = syncbn.norm_layer("moving_average", least_var=0.5)(4)
assert "least_var=0.5" in repr(layer) and syncbn.convert(layer, "sync").least_var == 0.5
print(syncbn.__file__)
"""


def follow(step: str, repository: Path) -> None:
    """Apply a step to the first file it names: write a new file, or apply its diffs."""
    for block in blocks(step):
        path = repository / paths(step)[0]
        if block.language == "diff":
            before = "".join(line[1:] for line in block.text.splitlines(keepends=True) if line[0] in " -")
            after = "".join(line[1:] for line in block.text.splitlines(keepends=True) if line[0] in " +")
            text = path.read_text()
            assert text.count(before) == 1, f"{path.name} has these lines {text.count(before)} times:\n{before}"
            path.write_text(text.replace(before, after))
        elif block.language in ("python", "yaml"):
            assert not path.exists(), path
            path.write_text(block.text)


def run(repository: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=280)
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
    for walk in WALKS:
        for step in steps(walk):
            follow(step, repository)
    return repository


def test_every_walk_is_as_short_as_it_says() -> None:
    assert {walk: len({paths(step)[0] for step in steps(walk)} | _further(walk)) for walk in WALKS} == FILES


def _further(walk: str) -> set[str]:
    """Files beside the first that a step names: the norm's row in the table, the model's."""
    return {path for step in steps(walk) for path in paths(step) if path.startswith("docs/")}


def test_what_was_added_is_known_in_code(extended: Path) -> None:
    assert run(extended, sys.executable, "-c", USE).strip() == str(extended / "syncbn" / "__init__.py")


def test_what_was_added_can_be_chosen_on_the_command_line(extended: Path) -> None:
    train = [sys.executable, "scripts/train.py", "--cfg", "job", "--resolve"]
    shown = run(
        extended, *train, "norm=pixel", "norm.eps=1e-4", "data=stripes", "callbacks=gradient_norm", "model=tiny"
    )
    assert "\n  name: pixel\n  eps: 0.0001\n" in shown
    assert "model:\n  _target_: syncbn.models.tiny.Tiny\n  width: 8\n" in shown
    assert "data:\n  _target_: syncbn.data.stripes.StripesDataModule\n  noise: 0.5\n" in shown
    assert "GradientNorm\n    every_n_steps: 10\n" in shown
    assert "  least_var: 0.0\n" in run(extended, *train, "norm=recurrent")


def test_the_command_is_among_the_others(extended: Path) -> None:
    assert re.search(r"^  norms +List the norms, with a line on each\.$", run(extended, *_syncbn, "--help"), re.M)
    assert run(extended, *_syncbn, "norms", "like=pix").startswith("pixel: Pixelwise normalization (Karras")
    assert re.search("width=8 +channels of the convolution", run(extended, *_syncbn, "options", "model=tiny"))


_syncbn = (sys.executable, "-m", "syncbn")


def test_the_linters_have_nothing_to_say(extended: Path) -> None:
    run(extended, sys.executable, "-m", "ruff", "check", "syncbn", "tests")
    run(extended, sys.executable, "-m", "ruff", "format", "--check", "syncbn", "tests")


def test_the_tests_of_the_walks_pass(extended: Path) -> None:
    files = [path for walk in WALKS for step in steps(walk) for path in paths(step)[:1] if path.startswith("tests/")]
    assert len(files) == len(WALKS)
    run(extended, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)


@pytest.mark.slow
def test_the_tests_that_go_over_everything_find_it(extended: Path) -> None:
    files = ["tests/norm/core/test_arguments.py", "tests/norm/core/test_registry.py", "tests/config"]
    files += ["tests/norm/test_every_norm.py", "tests/test_rooms.py"]
    names = ("pixel", "tiny", "stripes", "gradient_norm", "least_var", "every_norm_has", "room", "repr")
    options = ["-v", "-p", "no:cacheprovider", "-k", " or ".join(names)]
    report = run(extended, sys.executable, "-m", "pytest", *options, *files)
    for test in ("by_name[pixel]", "torch[pixel-", "their_defaults[pixel]", "has_a_config_with_its_options"):
        assert re.search(f"{re.escape(test)}.* PASSED", report), report
    for test in ("instantiated[model-tiny]", "instantiated[data-stripes]", "instantiated[callbacks-gradient_norm]"):
        assert re.search(f"{re.escape(test)}.* PASSED", report), report
