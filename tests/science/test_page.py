"""Pages say what the records say; those in docs/results are the ones their records give."""

import re
from pathlib import Path

import pytest

from science import page, summary
from science.plan import available_results, load_plan
from science.records import Records
from science.verdict import judge, overall
from tests.docs.markdown import REPOSITORY
from tests.science.plans import records, write_plan

RESULTS = REPOSITORY / "docs" / "results"
COMPLETE = [name for name in available_results() if (RESULTS / f"{name}.csv").is_file()]
GOOD, BAD = [0.9, 0.91, 0.92, 0.9, 0.91], [0.5, 0.51, 0.5, 0.52, 0.5]


@pytest.mark.parametrize(("slow", "fast", "verdict"), [(GOOD, BAD, "holds"), (BAD, GOOD, "does not hold")])
def test_a_page_has_claim_figures_and_verdict(
    slow: list[float], fast: list[float], verdict: str, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path / "small.yaml")
    written = page.write(plan, records(tmp_path / "small.csv", {"mlp/0.1": slow, "mlp/1": fast}), tmp_path).read_text()
    assert f"**Verdict: {verdict}.**" in written
    assert f"**{verdict}** |" in written
    assert f"| {'0.1' if slow is GOOD else '1'} | 90.8 ± 1.0 |" in written
    assert "mlp/0.1 (test/acc) > mlp/1 (test/acc) + 5" in written
    assert "python scripts/reproduce.py small`: 10 runs over 5 seeds" in written
    assert (tmp_path / "small.png").stat().st_size > 5_000


def test_a_smoke_page_says_that_its_figures_mean_nothing(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "small.yaml")
    assert "mean nothing" in page.text(plan, records(tmp_path / "small.csv", {"mlp/0.1": [0.5, 0.6]}), smoke=True)


def test_committed_pages_are_complete_and_what_their_records_give() -> None:
    for name in COMPLETE:
        plan = load_plan(name)
        found = Records(RESULTS / f"{name}.csv", plan.metrics())
        runs = {(row.cell, row.seed) for row in found.rows}
        assert runs == {(cell.name, seed) for cell in plan.cells() for seed in range(plan.seeds)}
        assert len(found.rows) == len(runs)
        assert (RESULTS / f"{name}.md").read_text() == page.text(plan, found)
        assert (RESULTS / f"{name}.png").is_file()


def test_the_summary_is_the_one_that_the_records_give(tmp_path: Path) -> None:
    for name in COMPLETE:
        (tmp_path / f"{name}.csv").write_bytes((RESULTS / f"{name}.csv").read_bytes())
    assert (RESULTS / "README.md").read_text() == summary.write(tmp_path).read_text()
    for name in COMPLETE:
        plan = load_plan(name)
        found = Records(RESULTS / f"{name}.csv", plan.metrics())
        verdict = overall([judge(claim, found.values) for claim in plan.claims])
        assert re.search(
            rf"^\| \[{name}\]\({name}.md\) .* \| {re.escape(verdict)} \|$", (RESULTS / "README.md").read_text(), re.M
        )
