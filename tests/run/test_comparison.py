"""Finished runs side by side: seeds averaged, tables for pages and papers, curves."""

import csv
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from scipy import stats

from syncbn.cli import compare
from syncbn.run.comparison import Mean, compared, find_runs, write_table
from syncbn.run.curves import spread
from syncbn.run.errors import UserError

ACCURACIES = {"batch": [0.5, 0.625, 0.75], "sync": [0.9375, 0.96875, 1.0]}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three seeds of two norms: two epochs, the better one first, and a test."""
    number = 0
    for norm, finals in ACCURACIES.items():
        for seed, accuracy in enumerate(finals):
            place = tmp_path / "norms" / str(number)
            (place / ".hydra").mkdir(parents=True)
            (place / ".hydra" / "overrides.yaml").write_text(f"[norm={norm}, seed={seed}, run_id=norms, a_b=50%]\n")
            lines = ["epoch,val/acc,val/loss,test/acc", f"0,{accuracy},1.5,", f"1,{accuracy / 2},1.25,"]
            (place / "metrics.csv").write_text("\n".join([*lines, f"2,,,{accuracy}", ""]))
            number += 1
    return tmp_path / "norms"


def test_seeds_are_averaged_with_students_interval(sweep: Path) -> None:
    table = compared(find_runs([sweep]), ["val/acc", "test/acc"], average=True)
    assert table.columns == ["norm"]
    for group, (norm, finals) in zip(table.groups, ACCURACIES.items(), strict=True):
        assert group.settings["norm"] == norm
        low, high = stats.t.interval(0.95, 2, loc=np.mean(finals), scale=stats.sem(finals))
        found = group.final("val/acc")
        assert found is not None
        assert found.half is not None
        np.testing.assert_allclose([found.mean - found.half, found.mean + found.half], [low, high])
        np.testing.assert_allclose(group.curve("val/acc")[1.0].mean, np.mean(finals) / 2)
    assert len(compared(find_runs([sweep]), ["val/acc"], average=False).groups) == 6


def test_one_run_has_no_interval_and_diverged_ones_have_nan() -> None:
    assert Mean.of([2.0]) == (2.0, None)
    diverged = Mean.of([1.0, math.nan])
    assert diverged.half is not None
    assert math.isnan(diverged.half)
    assert math.isnan(diverged.mean)


@pytest.mark.parametrize("suffix", ["csv", "md", "tex"])
def test_tables(sweep: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"table.{suffix}"
    write_table(compared(find_runs([sweep]), ["test/acc"], average=True), path)
    text = path.read_text()
    if suffix == "csv":
        rows = list(csv.DictReader(text.splitlines()))
        assert [float(row["test/acc"]) for row in rows] == [0.625, 0.96875]
        assert [row["runs"] for row in rows] == ["3", "3"]
        assert all(float(row["test/acc ±"]) > 0 for row in rows)
    elif suffix == "md":
        assert text.splitlines()[:3] == [
            "| run | norm | runs | test/acc |",
            "| --- | --- | --- | --- |",
            "| norms/0 and 2 more | batch | 3 | 0.6250 ± 0.3105 |",
        ]
    else:
        assert text.startswith(r"\begin{tabular}{lllr}" + "\n" + r"\toprule")
        assert r"norms/3 and 2 more & sync & 3 & 0.9688 $\pm$ 0.0776 \\" in text


def test_latex_escapes_what_settings_hold(sweep: Path, tmp_path: Path) -> None:
    (sweep / "0" / ".hydra" / "overrides.yaml").write_text("[norm=a_b&c%, seed=0]\n")
    write_table(compared(find_runs([sweep]), ["test/acc"], average=True), tmp_path / "t.tex")
    assert r"a\_b\&c\%" in (tmp_path / "t.tex").read_text()


def test_the_command(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, plot = tmp_path / "t.md", tmp_path / "p.svg"
    compare.compare([str(sweep), "metric=val/loss,test/acc", f"table={table}", f"plot={plot}"])
    assert "0.6250 ± 0.3105" in capsys.readouterr().out
    assert "val/loss" in table.read_text()
    drawn = plot.read_text()
    assert drawn.startswith("<?xml")
    assert matplotlib.rcParams["svg.fonttype"] == "path"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("metric=val/los", "metric=val/los: no run has it; did you mean 'val/loss'"),
        ("table=t.doc", "table=t.doc: allowed are files of .csv, .md, .tex"),
        ("seeds=both", "seeds"),
    ],
)
def test_mistakes(sweep: Path, argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare.compare([str(sweep), argument])


def test_a_folder_that_is_not_there_is_told(sweep: Path) -> None:
    with pytest.raises(UserError, match="no folder 'nope': give those of runs"):
        compare.compare([str(sweep), "nope"])


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_apart_and_in_order_and_near_where_they_belong(seed: int) -> None:
    places = np.random.default_rng(seed).uniform(0, 1, 9)
    moved = np.array(spread(list(places), 0.1))
    order = np.argsort(places)
    assert (np.diff(moved[order]) >= 0.1 - 1e-12).all()
    assert spread([0.1, 0.5], 0.1) == [0.1, 0.5]
    np.testing.assert_allclose(spread([0.5, 0.5], 0.1), [0.45, 0.55])
    # Least squares under the same constraints, by another way: isotonic regression of the places less their ranks.
    from sklearn.isotonic import isotonic_regression

    ranks = 0.1 * np.arange(9)
    np.testing.assert_allclose(moved[order], isotonic_regression(places[order] - ranks) + ranks)


def write_run(place: Path, overrides: str, config: str, accuracy: float) -> None:
    (place / ".hydra").mkdir(parents=True)
    (place / ".hydra" / "overrides.yaml").write_text(f"[{overrides}]\n")
    (place / ".hydra" / "config.yaml").write_text(f"{{{config}, paths: {{output_dir: {place}}}}}\n")
    (place / "metrics.csv").write_text(f"epoch,test/acc\n0,{accuracy}\n")


def test_a_run_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed, accuracy in (("a", 0, 0.5), ("b", 1, 0.75), ("again", 0, 0.5)):
        write_run(tmp_path / name, f"seed={seed}, run_id={name}", f"seed: {seed}, lr: 0.1", accuracy)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    named = [tmp_path / "a", tmp_path / "b", tmp_path / "b" / ".." / "a", tmp_path / "link"]
    assert [run.name for run in find_runs(named)] == ["a", "b"]

    (group,) = compared(find_runs([*named, tmp_path / "again"]), ["test/acc"], average=True).groups
    low, high = stats.t.interval(0.95, 1, loc=0.625, scale=stats.sem([0.5, 0.75]))
    found = group.final("test/acc")
    assert found is not None
    assert found.half is not None
    np.testing.assert_allclose([found.mean - found.half, found.mean + found.half], [low, high])
    compare.compare([*map(str, named), str(tmp_path / "again"), f"plot={tmp_path / 'c.png'}"])
    assert "left out: again has the config and the seed of a" in capsys.readouterr().out


def test_equal_overrides_of_other_defaults_are_other_settings(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "norm=group, seed=0", "seed: 0, norm: {name: group, groups: 8}, lr: 0.1", 0.5)
    write_run(tmp_path / "b", "norm=group, seed=1", "seed: 1, norm: {name: group, groups: auto}, lr: 0.1", 0.75)
    write_run(
        tmp_path / "c", "norm=group, norm.groups=8, seed=1", "seed: 1, norm: {name: group, groups: 8}, lr: 0.1", 0.75
    )
    table = compared(find_runs([tmp_path]), ["test/acc"], average=True)
    assert [[run.name.split("/")[-1] for run in group.runs] for group in table.groups] == [["a", "c"], ["b"]]
    assert table.columns == ["norm.groups"]
    assert [table.label(group) for group in table.groups] == ["norm.groups=8", "norm.groups=auto"]


def test_what_does_not_affect_a_result_is_no_column(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "norm=batch, run_id=a, 'tags=[x]'", "seed: 0, norm: batch, run_id: a, tags: [x]", 0.5)
    write_run(tmp_path / "b", "norm=sync, run_id=b, 'tags=[y]'", "seed: 0, norm: sync, run_id: b, tags: [y]", 0.75)
    assert compared(find_runs([tmp_path]), ["test/acc"], average=True).columns == ["norm"]
    assert compared(find_runs([tmp_path]), ["test/acc"], average=False).columns == ["norm"]


def test_a_guests_metrics_are_found_by_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", "task=Mine, seed=0", "seed: 0, task: Mine", 0.5)
    (tmp_path / "a" / "metrics.csv").write_text("epoch,step,val_f1,train_x,empty\n0,5,0.25,1,\n1,9,0.75,2,\n")
    table, plot = tmp_path / "t.md", tmp_path / "p.svg"
    compare.compare([str(tmp_path / "a"), f"table={table}", f"plot={plot}"])
    assert table.read_text().splitlines()[0] == "| run | val_f1 |"
    assert "0.7500" in capsys.readouterr().out
    (tmp_path / "a" / "metrics.csv").write_text("epoch,step\n0,5\n")
    with pytest.raises(UserError, match="no metric is logged in a"):
        compare.compare([str(tmp_path / "a")])


def test_a_label_that_leaves_no_room_for_the_curves_is_the_runs_name(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compared(find_runs([sweep]), ["val/loss"], average=True)
    assert all("=" in found.label(group) for group in found.groups)
    monkeypatch.setattr("syncbn.run.comparison._ROOM", 3)
    assert [found.label(group) for group in found.groups] == [group.name for group in found.groups]
