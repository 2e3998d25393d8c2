"""Pictures of results: points, lines with their names beside them, heat maps, and a title of its own for each panel."""

from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest

from science import figure
from science.plan import available_results, load_plan
from science.verdict import Values
from tests.science.plans import write_plan

NORMS = ["layer", "rms", "dynamic_tanh", "dynamic_erf", "none"]
DOMAINS = ["none", "paler", "blurred", "noisy", "turned", "inverted"]


def values(cell: str, metric: str) -> dict[int, float]:
    """Five runs of a cell, which differ from cell to cell."""
    return {seed: (sum(map(ord, cell + metric)) % 97 + seed) / 100 for seed in range(5)}


def drawn(
    grids: dict[str, object], path: Path, monkeypatch: pytest.MonkeyPatch, measured: Values = values
) -> list[Any]:
    """The panels of the picture of a plan with these grids beside its own."""
    seen: list[Any] = []
    save = matplotlib.figure.Figure.savefig

    def saved(self: Any, *args: Any, **options: Any) -> None:
        seen.extend(axes for axes in self.axes if axes.axison)
        save(self, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", saved)
    plan = write_plan(path / "small.yaml", {f"grids.{name}": grid for name, grid in grids.items()})
    figure.draw(plan, measured, path / "small.png")
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
    assert [axes.get_title() for axes in panels] == ["An MLP", "Errors:\nthe batch alone", "Errors:\nthe window"]


def test_lines_are_named_at_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"accuracy": {"title": "accuracy, %", "scale": 100}}
    axes = {"lr": {"0.1": [], "1": []}, "window": {"2": [], "4": []}}
    _, panel = drawn({"windows": {"title": "Windows", "metrics": metrics, "axes": axes}}, tmp_path, monkeypatch)
    assert panel.get_legend() is None
    *names, heading = panel.texts
    assert heading.get_text() == "lr"
    means = {rate: 100 * sum(values(f"windows/{rate}/4", "accuracy").values()) / 5 for rate in ("0.1", "1")}
    assert {name.get_text(): name.xy for name in names} == {rate: (1, pytest.approx(means[rate])) for rate in means}
    assert len({name.get_color() for name in names}) == 2


def test_many_metrics_of_one_unit_share_a_heat_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {name: {"title": name, "scale": 100} for name in DOMAINS}
    grid = {"title": "Domains", "metrics": metrics, "axes": {"method": {"frozen": [], "batch": []}}}
    _, table = drawn({"shift": grid}, tmp_path, monkeypatch)
    cells = [(f"shift/{method}", domain) for method in ("frozen", "batch") for domain in DOMAINS]
    means = [sum(values(*cell).values()) / 5 for cell in cells]
    assert [text.get_text() for text in table.texts] == [f"{100 * mean:.1f}" for mean in means]
    assert table.get_subplotspec().get_gridspec().ncols == table.get_subplotspec().colspan.stop


def test_intervals_of_shares_end_at_0_and_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {"shares/low": [0.0, 0.0, 0.0, 0.0, 0.1], "shares/high": [1.0, 1.0, 1.0, 0.9, 1.0]}

    def measured(cell: str, metric: str) -> dict[int, float]:
        return dict(enumerate(shares[cell])) if cell in shares else values(cell, metric)

    grid = {
        "title": "Shares",
        "metrics": {"share": {"title": "share, %", "scale": 100}},
        "axes": {"norm": {"low": [], "high": []}},
    }
    _, panel = drawn({"shares": grid}, tmp_path, monkeypatch, measured)
    (_, _, (bars,)) = panel.containers[0]
    low, high = bars.get_segments()
    assert low[0][1] == pytest.approx(0)
    assert low[1][1] > 4
    assert high[0][1] < 96
    assert high[1][1] == pytest.approx(100)


@pytest.mark.parametrize("name", available_results())
def test_no_two_panels_of_a_page_have_one_title(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []

    def saved(self: Any, *_: Any, **__: Any) -> None:
        titles.extend(axes.get_title() for axes in self.axes)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", saved)
    figure.draw(load_plan(name), values, tmp_path / "picture.png")
    assert titles
    assert len(set(titles)) == len(titles)
