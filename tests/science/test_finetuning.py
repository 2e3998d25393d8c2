"""The program behind docs/results/finetuning.md, on one seed: the page's claims hold there too."""

import sys

import pytest

from science import finetuning
from tests.docs.markdown import REPOSITORY

PAGE = REPOSITORY / "docs" / "results" / "finetuning.md"

# Warnings that the program silences, and Lightning's advice on deliberate settings.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`isinstance:FutureWarning", "ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"
)


def test_recalibration_closes_the_gap_of_small_momentum() -> None:
    found = finetuning.recalibration(seed=0, counts=(40,))
    assert found["40", "recalibrated"] > found["40", "running averages"] + 40


def test_adabn_brings_a_shifted_domain_back_and_not_an_inverted_one() -> None:
    names = ("0.4·x + 0.5", "inverted")
    found = finetuning.domains(seed=0, names=names)
    assert found["0.4·x + 0.5", "as it is"] < 40
    assert found["0.4·x + 0.5", "adabn"] > 94
    assert found["inverted", "adabn"] < 60


def test_every_policy_and_method_is_in_the_tables() -> None:
    page = PAGE.read_text()
    assert all(f"| {policy} |" in page for policy in finetuning.POLICIES)
    assert all(f"| {domain} |" in page for domain in finetuning.DOMAINS)
    for table in ("domains", "recalibration", "policies"):
        assert f"python -m science.finetuning {table}" in page


def test_a_table_has_the_mean_and_deviation_of_the_seeds() -> None:
    rows = [{("a", "x"): 1.0, ("a", "y"): 5.0}, {("a", "x"): 3.0, ("a", "y"): 5.0}]
    assert finetuning.table(rows) == "| | x | y |\n|---|---|---|\n| a | 2.0 ± 1.0 | 5.0 ± 0.0 |"


def test_no_table_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["finetuning.py"])
    with pytest.raises(SystemExit, match="Tables: domains, recalibration, policies"):
        finetuning.main()
