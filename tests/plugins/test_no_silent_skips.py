"""The plugin that makes a skip a failure in CI, on a small suite of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import pytest

def test_runs():
    pass

@pytest.mark.skip(reason="no cluster")
def test_skipped():
    pass

@pytest.mark.gpu
def test_needs_gpu():
    pytest.skip("no GPU")
"""


@pytest.mark.parametrize(("ci", "outcome"), [("true", "1 passed, 1 skipped, 1 error"), ("", "1 passed, 2 skipped")])
def test_only_gpu_tests_may_skip_in_ci(tmp_path: Path, ci: str, outcome: str) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
    repository = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "tests.plugins.no_silent_skips", str(tmp_path)]
    environ = {**os.environ, "CI": ci, "PYTHONPATH": str(repository)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert outcome in done.stdout
    assert ("no cluster: skipped" in done.stdout.replace("Skipped: ", "")) == bool(ci)
