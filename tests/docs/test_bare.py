"""The README's first program in an environment that has what `pip install .` brings, and nothing else."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]


def brought_along() -> set[str]:
    """Packages that the project's own requirements bring, and those that these do."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    waiting, found = [Requirement(line) for line in project["dependencies"]], {"syncbn"}
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            waiting += [Requirement(line) for line in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:  # on another platform
            continue
    return found


@pytest.mark.slow
@pytest.mark.distributed
def test_the_first_program_needs_no_more(tmp_path: Path) -> None:
    brought, modules = brought_along(), importlib.metadata.packages_distributions()
    others = [name for name, of in modules.items() if not brought & {canonicalize_name(each) for each in of}]
    assert "lightning" in others
    assert "torch" not in others
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({sorted(others)!r}))\n"  # an import of None raises
    (tmp_path / "sitecustomize.py").write_text(blocked)
    (program,) = re.findall(r"```python\n(# check\.py.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    (tmp_path / "check.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, "check.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "ranks with 3 + 5 samples are one process" in done.stdout, done.stderr
