"""The short form of `python -m tests.soak`: each kind of stop once."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY
from tests.soak.stories import KINDS, SHORT, story


def test_every_kind_of_stop_is_told() -> None:
    """Another number of ranks takes a story that isn't compared: tests/cli/test_elastic.py."""
    assert {kind for _, kinds in SHORT for kind in kinds} == set(KINDS) - {"other ranks"}


def test_a_story_is_a_function_of_its_number() -> None:
    assert [story(number) for number in range(50)] == [story(number) for number in range(50)]
    assert len({story(number).words for number in range(50)}) > 45


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
def test_runs_that_are_stopped_equal_those_that_are_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.soak", "short=true", f"keep={tmp_path}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(SHORT)} runs: {len(SHORT)} equal bit for bit, 0 wrong" in done.stdout
