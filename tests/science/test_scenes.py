"""docs/results/scenes.md has the figures of scenes.csv, and its program adds rows."""

import csv
from pathlib import Path

import pytest

from science import scenes
from tests.docs.markdown import REPOSITORY

PAGE = (REPOSITORY / "docs" / "results" / "scenes.md").read_text()
ROWS = [
    {"setting": setting, "seed": str(seed), "steps": "9", "miou": str(value), "acc": "1", "loss": "0"}
    for setting, values in zip(scenes.SETTINGS, ((0.5, 0.75), (0.25, 0.5), (0.125,)), strict=True)
    for seed, value in enumerate(values)
]


@pytest.mark.parametrize("metric", ["miou", "acc", "loss"])
def test_the_page_has_the_table_of_the_figures(metric: str) -> None:
    assert scenes.table(scenes.measured(), metric) in PAGE


def test_what_the_page_reads_from_the_table() -> None:
    miou = {(row["setting"], row["seed"]): 100 * float(row["miou"]) for row in scenes.measured()}
    seeds = sorted({seed for _, seed in miou})
    whole, sync, alone = ([miou[setting, seed] for seed in seeds] for setting in scenes.SETTINGS)
    gains = [a - b for a, b in zip(sync, alone, strict=True)]
    assert (f"{min(gains):.1f}", f"{max(gains):.1f}", f"{sum(gains) / 4:.1f}") == ("0.3", "1.4", "1.0")
    assert "by 0.3 to 1.4 points, 1.0 on average" in PAGE
    differences = [a - b for a, b in zip(whole, sync, strict=True)]
    found = (
        f"{min(differences):.1f} to +{max(differences):.1f} points, with both signs, and by {sum(differences) / 4:.1f}"
    )
    assert found in PAGE


def test_a_table_has_each_seed_and_the_mean() -> None:
    lines = scenes.table(ROWS, "miou").splitlines()
    assert lines[0] == "| seed | one process of 8 | 4 ranks of 2, sync | 4 ranks of 2, batch |"
    assert lines[2:] == [
        "| 0 | 0.500 | 0.250 | 0.125 |",
        "| 1 | 0.750 | 0.500 |  |",
        "| mean | 0.625 | 0.375 | 0.125 |",
    ]


def test_runs_that_are_there_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "TABLE", tmp_path / "scenes.csv")
    asked = []

    def measure(setting: str, seed: int, options: list[str]) -> dict[str, str]:
        asked.append((setting, seed, options))
        return next(row for row in ROWS if (row["setting"], row["seed"]) == (setting, str(seed)))

    monkeypatch.setattr(scenes, "measure", measure)
    monkeypatch.setattr("sys.argv", ["scenes", "seeds=1", "model.width=8"])
    scenes.main()
    scenes.main()
    assert asked == [(setting, 0, ["model.width=8"]) for setting in scenes.SETTINGS]
    with (tmp_path / "scenes.csv").open(newline="") as file:
        assert [row["setting"] for row in csv.DictReader(file)] == list(scenes.SETTINGS)
