"""`make results` with a `python` that notes its arguments: a plan that fails leaves the others to run."""

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PLANS = sorted(plan.stem for plan in (REPOSITORY / "science" / "plans").glob("*.yaml"))
PYTHON = """#!/bin/sh
echo "$2" >> "$SEEN"
[ "$2" != "$FAILS" ] || exit "$CODE"
"""


@pytest.mark.parametrize(
    ("code", "seen", "end"),
    [
        (0, [*PLANS, "summary"], ""),
        (1, [*PLANS, "summary"], f"error: failed: {PLANS[1]}"),
        (137, [*PLANS, "summary"], f"error: failed: {PLANS[1]}"),  # killed, for want of memory perhaps
        (130, PLANS[:2], ""),  # Ctrl-C
    ],
)
def test_the_end_lists_the_plans_that_failed(code: int, seen: list[str], end: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    places = {"SEEN": str(tmp_path / "seen"), "FAILS": PLANS[1], "CODE": str(code)}
    environ = {**os.environ, **places, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["make", "results", "VENV="], cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == (code == 0)
    assert (tmp_path / "seen").read_text().split() == seen
    assert done.stderr.startswith(end) if end else "error: failed" not in done.stderr
