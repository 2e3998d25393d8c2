"""Pictures of results: a point for each metric of a grid without axes, a heat map of long tables, titles by metric."""

from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest

from science import figure
from science.page import standing_plan
from science.records import Records
from tests.docs.markdown import REPOSITORY

RESULTS = REPOSITORY / "docs" / "results"


def drawn(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The panels of a result's picture, from its records."""
    seen: list[Any] = []
    save = matplotlib.figure.Figure.savefig

    def saved(self: Any, *args: Any, **options: Any) -> None:
        seen.extend(axes for axes in self.axes if axes.axison)
        save(self, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", saved)
    plan = standing_plan(name, RESULTS)
    figure.draw(plan, Records(RESULTS / f"{name}.csv", plan.metrics()).values, path / f"{name}.png")
    assert (path / f"{name}.png").stat().st_size > 10_000
    return seen


def test_times_of_norms_are_points_of_one_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy, times = drawn("transformers", tmp_path, monkeypatch)
    assert accuracy.get_ylabel() == "test accuracy, %"
    names = ["layer", "rms", "dynamic_tanh", "dynamic_erf", "none"]
    assert [label.get_text() for label in times.get_xticklabels()] == names
    assert len(times.containers) == len(names)


def test_domains_by_methods_are_a_heat_map_with_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (table,) = drawn("shift", tmp_path, monkeypatch)
    assert len(table.images) == 1
    numbers = [text.get_text() for text in table.texts]
    assert len(numbers) == 10 * 8
    page = (RESULTS / "shift.md").read_text()
    assert all(f"| {number} ± " in page for number in numbers)


def test_panels_are_named_after_their_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = [axes.get_title() for axes in drawn("statistics", tmp_path, monkeypatch)]
    assert titles == ["the batch alone", "the window, not carried", "the window, carried", "test accuracy, %"]
