"""Pictures of results: a point for each metric of a grid without axes, a heat map of long tables, titles by metric."""

from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest

from science import figure
from tests.science.plans import write_plan

NORMS = ["layer", "rms", "dynamic_tanh", "dynamic_erf", "none"]
DOMAINS = ["none", "paler", "blurred", "noisy", "turned", "inverted"]


def values(cell: str, metric: str) -> dict[int, float]:
    """Five runs of a cell, which differ from cell to cell."""
    return {seed: (sum(map(ord, cell + metric)) % 97 + seed) / 100 for seed in range(5)}


def drawn(grids: dict[str, object], path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The panels of the picture of a plan with these grids beside its own."""
    seen: list[Any] = []
    save = matplotlib.figure.Figure.savefig

    def saved(self: Any, *args: Any, **options: Any) -> None:
        seen.extend(axes for axes in self.axes if axes.axison)
        save(self, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", saved)
    plan = write_plan(path / "small.yaml", {f"grids.{name}": grid for name, grid in grids.items()})
    figure.draw(plan, values, path / "small.png")
    assert (path / "small.png").stat().st_size > 10_000
    return seen


def test_metrics_of_a_grid_without_axes_are_points_of_one_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"title": "Milliseconds", "metrics": {norm: {"title": norm} for norm in NORMS}}
    accuracy, points = drawn({"time": times}, tmp_path, monkeypatch)
    assert accuracy.get_ylabel() == "accuracy, %"
    assert [label.get_text() for label in points.get_xticklabels()] == NORMS
    assert len(points.containers) == len(NORMS)


def test_domains_by_methods_are_a_heat_map_with_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = {"domain": {name: [] for name in DOMAINS}, "method": {name: [] for name in NORMS}}
    metrics = {"accuracy": {"title": "accuracy, %", "scale": 100}}
    _, table = drawn({"shift": {"title": "Domains", "metrics": metrics, "axes": axes}}, tmp_path, monkeypatch)
    assert len(table.images) == 1
    found = [text.get_text() for text in table.texts]
    cells = [f"shift/{domain}/{method}" for domain in DOMAINS for method in NORMS]
    assert found == [f"{100 * sum(values(cell, 'accuracy').values()) / 5:.1f}" for cell in cells]


def test_panels_are_named_after_their_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"batch": {"title": "the batch alone"}, "plain": {"title": "the window"}}
    axes = {"lr": {"0.1": [], "1": []}, "window": {"2": [], "4": [], "8": []}}
    panels = drawn({"errors": {"title": "Errors", "metrics": metrics, "axes": axes}}, tmp_path, monkeypatch)
    assert [axes.get_title() for axes in panels] == ["An MLP", "the batch alone", "the window"]
