"""The command of CONTRIBUTING.md, written into a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import REPOSITORY, blocks


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and the new file."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(REPOSITORY / "syncbn", folder / "syncbn", ignore=shutil.ignore_patterns("__pycache__"))
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    (block,) = blocks(page.split("## Add a command\n")[1].split("\n## ")[0])
    (folder / "syncbn" / "cli" / "norms.py").write_text(block.text)
    return folder


def run(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "syncbn", *words]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_it_is_listed_helps_works_and_refuses(copy: Path) -> None:
    assert "  norms        Name the norms that there are.\n" in run(copy, "--help").stdout
    assert "  first=<n>  how many of them; all by default" in run(copy, "norms", "--help").stdout
    assert run(copy, "norms", "first=2").stdout == "adaptive batch\n"
    assert "first: expected an integer at least 1 or null, got 0" in run(copy, "norms", "first=0").stderr
    refused = run(copy, "norms", "frist=2")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: frist: no such key; did you mean 'first'? allowed: first\n",
    )


def test_the_linter_has_nothing_to_say(copy: Path) -> None:
    config = f"--config={REPOSITORY / 'pyproject.toml'}"
    subprocess.run([sys.executable, "-m", "ruff", "check", config, "syncbn/cli/norms.py"], cwd=copy, check=True)
