"""Every plan of science/plans is valid and composes; mistakes are reported by key."""

import csv
from pathlib import Path

import pytest

from science.measures import find
from science.plan import Cell, available_results, load_plan
from science.runs import settings_of
from tests.docs.markdown import REPOSITORY
from tests.science.plans import write_plan

NAMES = {
    *("batch_size", "class_shards", "dcgan", "depth", "federated", "landscape", "placement", "precise"),
    *("robustness", "shift", "slimming", "statistics", "steps", "sync_every", "transformers"),
}


def test_every_result_of_the_plan_is_there() -> None:
    assert set(available_results()) == NAMES


@pytest.mark.parametrize("name", available_results())
def test_every_cell_is_a_config_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")
    plan = load_plan(name)
    settings = settings_of(plan)
    assert set(settings) == {cell.name for cell in plan.cells()}
    assert len(set(settings.values())) == len(settings), "two cells are the same runs"
    for grid in plan.grids.values():
        find(grid.measure)
    results = REPOSITORY / "docs" / "results"
    if (recorded := results / f"{name}.csv").is_file():
        rows = {(row["cell"], row["settings"]) for row in csv.DictReader(recorded.read_text().splitlines())}
        assert rows <= set(settings.items()), f"made with other settings: python scripts/reproduce.py {name}"


@pytest.mark.parametrize("name", [name for name in available_results() if load_plan(name).full])
def test_the_full_size_composes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")
    assert set(settings_of(load_plan(name), "full")) <= {cell.name for cell in load_plan(name).cells()}


def test_budgets_of_all_results_are_six_hours() -> None:
    """Minutes on two cores, `precise` with its earlier ones."""
    assert sum(load_plan(name).budget_minutes for name in available_results()) <= 360


@pytest.mark.parametrize("name", available_results())
def test_the_smoke_size_has_every_choice_that_a_claim_is_about(name: str) -> None:
    plan = load_plan(name)
    small, smoke = (_choices(plan.cells(scale)) for scale in ("small", "smoke"))
    named = _choices([cell for cell in plan.cells() if cell.name in plan.named()])
    assert smoke == named <= small
    assert plan.seeds >= 5


def _choices(cells: list[Cell]) -> set[tuple[str, int, str]]:
    return {(cell.grid, axis, choice) for cell in cells for axis, choice in enumerate((*cell.choices, ""))}


def test_a_cell_has_the_overrides_of_its_choices_and_the_options_of_its_measure(tmp_path: Path) -> None:
    changes = {"grids.mlp.axes.norm": {"BN": ["norm=batch", "measure.levels=[1,2]"], "GN": ["norm=group"]}}
    changes |= {"claims.0.left.cell": "mlp/0.1/BN", "claims.0.right.cell": "mlp/0.1/GN"}
    plan = write_plan(
        tmp_path / "small.yaml", {**changes, "headline": {"metric": "test/acc", "series": {"a": ["mlp/1/BN"]}}}
    )
    cells = {cell.name: cell for cell in plan.cells()}
    assert set(cells) == {f"mlp/{lr}/{norm}" for lr in ("0.1", "1", "2") for norm in ("BN", "GN")}
    assert cells["mlp/0.1/BN"].overrides[-2:] == ("optimizer.lr=0.1", "norm=batch")
    assert cells["mlp/0.1/BN"].options == ("levels=[1,2]",)
    assert {cell.name for cell in plan.cells("smoke")} == {"mlp/0.1/BN", "mlp/0.1/GN", "mlp/1/BN"}
    assert all(cell.overrides[-1] != "trainer.limit_train_batches=2" for cell in plan.cells())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"claims.0.relation": "=="}, "claims"),
        ({"claims.0.left.cell": "mlp/0.2"}, r"no cell 'mlp/0.2'; .*mlp/0.1"),
        ({"claims.0.left.minus": "mlp/3"}, r"no cell 'mlp/3'"),
        ({"claims.0.scale": "log"}, "claims"),
        ({"claims.0.left.metric": "test/loss"}, r"no metric 'test/loss' of mlp/0.1; allowed: test/acc"),
        ({"headline.metric": "acc"}, "no metric 'acc'"),
        ({"headline.ticks": ["one"]}, "needs 1 cells"),
        ({"seeds": 4}, "seeds: expected an integer at least 5, got 4"),
        ({"budget_minutes": 91}, "budget_minutes"),
        ({"grid": 1}, "grid: no such key"),
    ],
)
def test_a_mistake_is_told(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_plan(tmp_path / "small.yaml", changes)


def test_an_unknown_result_or_measure_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no result 'step'; did you mean 'steps'"):
        load_plan("step")
    with pytest.raises(ValueError, match=r"unknown measure 'trane'; did you mean 'train'"):
        find("trane")


def test_settings_are_what_a_plan_says_and_not_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An explicit default, or an option of a later version, doesn't change the settings; a null may."""
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")

    def settings(*overrides: str) -> str:
        plan = write_plan(tmp_path / "small.yaml", {"grids.mlp.axes.lr": {"0.1": list(overrides), "1": ["seed=1"]}})
        return settings_of(plan)["mlp/0.1"]

    usual = settings("optimizer.lr=0.5")
    assert usual == settings("optimizer.lr=0.5", "norm.momentum=0.1", "optimizer.dampening=0", "elastic=keep")
    others = [
        settings("optimizer.lr=0.5", change)
        for change in ("norm.momentum=null", "norm.momentum=0.2", "norm=sync", "optimizer.nesterov=false", "threads=2")
    ]
    assert len({usual, *others}) == 6
