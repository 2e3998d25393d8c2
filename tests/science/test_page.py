"""Pages match the records; those in docs/results are up to date."""

import re
import statistics
from pathlib import Path

import pytest

from science import page, summary
from science.history import claims_at
from science.plan import PLANS, available_results, load_plan
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
    differences = [a - b for a, b in zip(slow, fast, strict=True)]
    effect = (statistics.fmean(differences) - 0.05) / statistics.stdev(differences)
    assert f"| {effect:+.1f} | < 0.001 | 5 |" in written
    assert "mlp/0.1 (test/acc) > mlp/1 (test/acc) + 5" in written
    assert "python scripts/reproduce.py small`: 10 runs over 5 seeds (0 to 4)" in written
    assert (tmp_path / "small.png").stat().st_size > 5_000


def test_a_smoke_page_says_that_its_figures_mean_nothing_in_the_place_of_verdicts(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "small.yaml", {"reading": "It was so."})
    found = records(tmp_path / "small.csv", {"mlp/0.1": GOOD, "mlp/1": BAD})
    smoke, small = page.text(plan, found, "smoke"), page.text(plan, found)
    assert "Its figures mean nothing, and none of the 1 claims is judged" in smoke
    for said in ("Verdict", "holds", "slow is better", "It was so."):
        assert said in small
        assert said not in smoke


@pytest.mark.parametrize(
    ("changes", "inequality", "difference"),
    [
        ({"claims.0.scale": "ratio", "claims.0.margin": 0.5}, "> mlp/1 (test/acc) by 50 %", "× 1.79"),
        ({"claims.0.scale": "ratio", "claims.0.relation": "within"}, "within 5 % of mlp/1 (test/acc)", "× 1.79"),
        ({"claims.0.left.minus": "mlp/2"}, "(mlp/0.1 - mlp/2) (test/acc) > mlp/1 (test/acc) + 5", "-39.8 ± 1.8"),
        ({"claims.0.left.times": 2, "claims.0.right": 0.9}, "2 × mlp/0.1 (test/acc) > 90 + 5", "+91.6 ± 2.1"),
    ],
)
def test_a_page_writes_each_kind_of_claim_in_symbols(
    changes: dict[str, object], inequality: str, difference: str, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path / "small.yaml", changes)
    found = records(tmp_path / "small.csv", {"mlp/0.1": GOOD, "mlp/1": BAD, "mlp/2": [0.8] * 5})
    written = page.text(plan, found)
    assert f"{inequality} | {difference}" in written


def test_a_page_at_full_size_says_so(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "small.yaml", {"full": "A large network.", "full_ranks": 8})
    written = page.text(plan, records(tmp_path / "small.csv", {"mlp/0.1": GOOD, "mlp/1": BAD}), "full")
    assert "**At full size.** A large network." in written
    assert "reproduce.py small scale=full`" in written
    assert ", 8 process(es) each" in written


def test_committed_pages_are_complete_and_what_their_records_give() -> None:
    for name in COMPLETE:
        plan = load_plan(name)
        found = Records(RESULTS / f"{name}.csv", plan.metrics())
        runs = {(row.cell, row.seed) for row in found.rows}
        assert runs == {(cell.name, seed) for cell in plan.cells() for seed in plan.seeds_of()}
        assert len(found.rows) == len(runs)
        assert (RESULTS / f"{name}.md").read_text() == page.text(plan, found)
        assert (RESULTS / f"{name}.png").is_file()


def test_claims_are_those_that_the_runs_were_made_to_judge() -> None:
    """Claims of the plan, of the records, and of the commit that the page names, if the history has it."""
    for name in COMPLETE:
        plan = load_plan(name)
        rows = Records(RESULTS / f"{name}.csv", plan.metrics()).rows
        assert {row.claims for row in rows} == {plan.claims_hash()}
        for commit in {row.commit for row in rows} - {""}:
            assert claims_at(commit, PLANS / f"{name}.yaml") in (None, plan.claims_hash())


def test_the_commit_of_the_claims_is_named(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "small.yaml")
    found = records(tmp_path / "small.csv", {"mlp/0.1": GOOD}, claims=plan.claims_hash(), commit="abc123")
    written = page.text(plan, found)
    assert "stand in `science/plans/small.yaml` since commit abc123, before the runs began" in written


def test_the_summary_is_the_one_that_the_records_give(tmp_path: Path) -> None:
    for name in COMPLETE:
        (tmp_path / f"{name}.csv").write_bytes((RESULTS / f"{name}.csv").read_bytes())
    assert (RESULTS / "README.md").read_text() == summary.write(tmp_path).read_text()
    for name in COMPLETE:
        plan = load_plan(name)
        found = Records(RESULTS / f"{name}.csv", plan.metrics())
        verdict = overall(judge(plan.claims, found.values))
        row = rf"^\| \[{name}\]\({name}.md\) .* \| {re.escape(verdict)} \| .* \|$"
        assert re.search(row, (RESULTS / "README.md").read_text(), re.M)
