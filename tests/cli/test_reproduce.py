"""scripts/reproduce.py: its messages, and a run on ranks that it starts itself."""

from pathlib import Path

import pytest

from tests.cli.conftest import run_script


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["batch_sise"], "no result 'batch_sise'; did you mean 'batch_size'?"),
        (["steps", "smok=true"], "smok: no such key; did you mean 'smoke'?"),
        (["steps", "smoke=yes"], "smoke: expected true or false, got 'yes'"),
        ([], "give one name, got 0"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run_script(tmp_path, "reproduce", *arguments)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1


def test_help_lists_the_results(tmp_path: Path) -> None:
    done = run_script(tmp_path, "reproduce", "--help")
    assert done.code == 0
    assert "batch_size, class_shards" in done.out


@pytest.mark.slow
@pytest.mark.distributed
def test_it_starts_its_ranks_and_a_second_time_has_nothing_to_do(tmp_path: Path) -> None:
    first = run_script(tmp_path, "reproduce", "class_shards", "smoke=true")
    assert first.code == 0, first.err
    assert "3/3 fashion/GN, seed 0" in first.out
    page = tmp_path / "outputs" / "results-smoke" / "class_shards.md"
    assert f"page: {page.relative_to(tmp_path)}" in first.out
    records = page.with_suffix(".csv").read_bytes()
    second = run_script(tmp_path, "reproduce", "class_shards", "smoke=true")
    assert second.code == 0, second.err
    assert "3 run(s) are done already" in second.out
    assert page.with_suffix(".csv").read_bytes() == records
