"""The page of versions matches its rows, and a test run adds the right row."""

import re
import subprocess
import sys
from pathlib import Path

import torch

from tests.plugins.versions import COLUMNS, ROWS, page, read_rows, write_row

SUITE = """
import pytest

def test_passes(): pass
def test_fails(): assert False
@pytest.mark.skip(reason="no | GPU")
def test_skips(): pass
"""


def row(**values: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "1") | {"torch": "2.9.1", "tests": "all"} | values


def test_the_page_is_that_of_the_rows() -> None:
    assert ROWS.with_suffix(".md").read_text() == page(read_rows(ROWS))


def test_a_run_writes_its_counts(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    options = [
        "-q",
        "-c",
        str(tmp_path / "pytest.ini"),
        "-p",
        "tests.plugins.versions",
        "--row",
        str(tmp_path / "rows.csv"),
    ]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path / "test_it.py")]
    subprocess.run(command, check=False, capture_output=True, cwd=ROWS.parents[1])

    (found,) = read_rows(tmp_path / "rows.csv")
    assert (found["passed"], found["failed"], found["skipped"]) == ("1", "1", "1")
    assert found["why_skipped"] == "1: no / GPU"
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


def test_a_second_run_takes_the_place_of_the_first_and_others_stay_in_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for one in (row(), row(torch="2.13.0"), row(tests="tests/norm"), row(passed="7")):
        write_row(path, one)

    assert [(r["torch"], r["tests"], r["passed"]) for r in read_rows(path)] == [
        ("2.9.1", "tests/norm", "1"),
        ("2.9.1", "all", "7"),
        ("2.13.0", "all", "1"),
    ]
    assert page(read_rows(path)).splitlines()[-3].startswith("| 2.13.0 |")
