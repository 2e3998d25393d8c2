"""Finished runs side by side: seeds averaged, tables for pages and papers, curves."""

import csv
import html
import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from scipy import stats

from syncbn.cli import compare
from syncbn.run.comparison import Mean, compared, find_runs, write_table
from syncbn.run.curves import draw_curves, spread
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


NAMES = ["[a,b]", "[/b]", "$x_$", "_final_", "a|b\\\\c", "'two\nlines'", "<b>", "{a: 1}"]


@pytest.fixture
def oddly_named(tmp_path: Path) -> Path:
    """Runs with a setting that rich, matplotlib, Markdown and LaTeX have meanings for."""
    for number, name in enumerate(NAMES):
        place = tmp_path / "odd" / str(number)
        (place / ".hydra").mkdir(parents=True)
        (place / ".hydra" / "overrides.yaml").write_text(json.dumps([f"t={name}", f"seed={number}"]))
        (place / "metrics.csv").write_text(f"epoch,val/acc\n0,0.{number}\n1,0.{number}5\n")
    return tmp_path / "odd"


def test_settings_are_shown_as_they_are(oddly_named: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = oddly_named / "p.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        compare.compare([str(oddly_named), f"plot={plot}"])
    screen, drawn = capsys.readouterr().out, html.unescape(plot.read_text())
    for name in NAMES:
        assert all(line in screen for line in name.splitlines())
        assert all(line in drawn for line in f"t={name}".splitlines())


def test_a_table_in_markdown_says_them_to_its_readers(oddly_named: Path) -> None:
    write_table(compared(find_runs([oddly_named]), ["val/acc"], average=True), oddly_named / "t.md")
    parsed = MarkdownIt("commonmark").enable("table").parse((oddly_named / "t.md").read_text())
    cells = [token.children or [] for token in parsed if token.type == "inline"]
    assert {child.type for cell in cells for child in cell} <= {"text", "text_special"}
    texts = ["".join(child.content for child in cell) for cell in cells]
    assert texts == ["run", "t", "val/acc", *(text for row in enumerate(NAMES) for text in _cells(*row))]


def _cells(number: int, name: str) -> list[str]:
    return [f"odd/{number}", name.replace("\n", " "), f"0.{number}500"]


def test_a_table_in_latex_has_a_row_a_run(oddly_named: Path) -> None:
    write_table(compared(find_runs([oddly_named]), ["val/acc"], average=True), oddly_named / "t.tex")
    *_, body = (oddly_named / "t.tex").read_text().partition("\\midrule\n")
    rows = body.splitlines()[: len(NAMES)]
    assert all(row.startswith("odd/") and row.endswith(r" \\") for row in rows)
    assert [row.split(" & ")[1] for row in rows] == [
        "{[}a,b]",
        "{[}/b]",
        r"\$x\_\$",
        r"\_final\_",
        r"a\textbar{}b\textbackslash{}\textbackslash{}c",
        "'two lines'",
        r"\textless{}b\textgreater{}",
        r"\{a: 1\}",
    ]


def test_a_nan_is_no_best_accuracy(sweep: Path) -> None:
    for values, best in ((["nan", 0.5, 0.25], 0.5), ([0.5, "nan", 0.25], 0.5), ([0.25, "nan"], 0.25)):
        lines = ["epoch,val/acc,val/loss", *(f"{epoch},{value},{value}" for epoch, value in enumerate(values))]
        (sweep / "0" / "metrics.csv").write_text("\n".join(lines))
        (run,) = find_runs([sweep / "0"])
        assert run.final("val/acc") == best
    assert math.isnan(run.final("val/loss") or 0)  # a last value is what it is
    (sweep / "0" / "metrics.csv").write_text("epoch,val/acc\n0,nan\n")
    (run,) = find_runs([sweep / "0"])
    assert math.isnan(run.final("val/acc") or 0)


def test_a_hundred_runs_have_room_for_their_labels(tmp_path: Path) -> None:
    for number in range(100):
        write_run(tmp_path / str(number), f"lr={number}", f"lr: {number}", number / 100)
    found = compared(find_runs([tmp_path]), ["test/acc"], average=True)
    draw_curves(found, tmp_path / "p.png")  # matplotlib warns where they have none, and warnings are errors
    few = compared(find_runs([tmp_path / str(number) for number in range(14)]), ["test/acc"], average=True)
    draw_curves(few, tmp_path / "few.png")
    with Image.open(tmp_path / "p.png") as many, Image.open(tmp_path / "few.png") as usual:
        assert (usual.size[1], many.size[1] > 20 * 100) == (600, True)


@pytest.mark.parametrize("option", ["table=file/t.md", "plot=file/p.png"])
def test_a_file_in_the_way_is_told(sweep: Path, option: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(sweep)
    (sweep / "file").touch()
    monkeypatch.setattr("sys.argv", ["syncbn", str(sweep), option])
    with pytest.raises(SystemExit, match="2"):
        compare.main()
    assert capsys.readouterr().err == "error: File exists: 'file'\n"


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


def test_a_metric_that_is_no_number_names_its_run(sweep: Path) -> None:
    with (sweep / "2" / "metrics.csv").open("a") as file:
        file.write("3,high,,\n")
    with pytest.raises(UserError, match=r"metrics.csv of run .*2, val/acc: could not convert string to float: 'high'"):
        compare.compare([str(sweep)])


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
