"""The program behind docs/results/finetuning.md, on one seed: what the page says of it holds there too."""

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.docs.markdown import REPOSITORY

PATH = REPOSITORY / "docs" / "results" / "finetuning.py"

# What the program, a script, silences; and Lightning's advice on settings that it chooses on purpose.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`isinstance:FutureWarning", "ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"
)


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_recalibration_closes_the_gap_of_small_momentum(program: ModuleType) -> None:
    found = program.recalibration(seed=0, counts=(40,))
    assert found["40", "recalibrated"] > found["40", "running averages"] + 40


def test_adabn_brings_a_shifted_domain_back_and_not_an_inverted_one(program: ModuleType) -> None:
    names = ("0.4·x + 0.5", "inverted")
    found = program.domains(seed=0, names=names)
    assert found["0.4·x + 0.5", "as it is"] < 40
    assert found["0.4·x + 0.5", "adabn"] > 94
    assert found["inverted", "adabn"] < 60


def test_every_policy_and_method_is_in_the_tables(program: ModuleType) -> None:
    page = PATH.with_suffix(".md").read_text()
    assert all(f"| {policy} |" in page for policy in program.POLICIES)
    assert all(f"| {domain} |" in page for domain in program.DOMAINS)
    for table in ("domains", "recalibration", "policies"):
        assert f"python docs/results/finetuning.py {table}" in page


def test_a_table_has_the_mean_and_deviation_of_the_seeds(program: ModuleType) -> None:
    rows = [{("a", "x"): 1.0, ("a", "y"): 5.0}, {("a", "x"): 3.0, ("a", "y"): 5.0}]
    assert program.table(rows) == "| | x | y |\n|---|---|---|\n| a | 2.0 ± 1.0 | 5.0 ± 0.0 |"


def test_no_table_is_named(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["finetuning.py"])
    with pytest.raises(SystemExit, match="Tables: domains, recalibration, policies"):
        program.main()
