"""Records survive a kill, and drop runs of other settings."""

from pathlib import Path

import pytest

from science.records import Record, Records


def row(cell: str, seed: int, settings: str = "x", acc: float = 0.5, claims: str = "c") -> Record:
    return Record(cell, seed, settings, claims, "abc", 1.25, 0.5, "Python 3, today", {"acc": acc})


def opened(path: Path, **settings: str) -> Records:
    return Records(path, ["acc", "loss"], settings)


def test_what_was_added_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.csv"
    records = opened(path, a="x", b="x")
    records.add(row("a", 0, acc=0.123456789))
    records.add(row("b", 1, acc=float("nan")))
    again = opened(path, a="x", b="x")
    assert again.has("a", 0)
    assert not again.has("a", 1)
    assert abs(again.values("a", "acc")[0] - 0.123456789) < 1e-8
    assert again.values("b", "acc")[1] != again.values("b", "acc")[1], "a NaN stays one"
    assert again.values("a", "loss") == {}
    assert again.rows[0][:8] == ("a", 0, "x", "c", "abc", 1.25, 0.5, "Python 3, today")


def test_a_row_cut_by_a_kill_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    records = opened(path, a="x")
    for seed in range(3):
        records.add(row("a", seed))
    whole = path.read_bytes()
    for cut in range(1, len(whole) - whole.rstrip(b"\n").rfind(b"\n") - 1):
        path.write_bytes(whole[:-cut])
        again = opened(path, a="x")
        assert [r.seed for r in again.rows] == [0, 1]
    again.add(row("a", 2))
    assert path.read_bytes() == whole


def test_rows_of_other_settings_or_cells_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    first = opened(path, a="x", b="x", c="x")
    for cell in "abc":
        first.add(row(cell, 0))
    again = opened(path, a="x", b="changed")
    assert [r.cell for r in again.rows] == ["a"]
    assert path.read_text().count("\n") == 4, "reading changes nothing"
    again.add(row("b", 0, "changed"))
    assert [line.split(",")[:3] for line in path.read_text().splitlines()[1:]] == [
        ["a", "0", "x"],
        ["b", "0", "changed"],
    ]


def test_a_new_metric_gets_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    Records(path, ["acc"], {"a": "x"}).add(row("a", 0))
    wider = opened(path, a="x")
    wider.add(Record("a", 1, "x", "c", "abc", 1, 1, "now", {"acc": 0.1, "loss": 2.0}))
    assert path.read_text().splitlines()[0].endswith("acc,loss")
    assert opened(path, a="x").values("a", "loss") == {1: 2.0}


def test_runs_that_were_made_for_other_claims_are_not_judged_by_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    opened(path, a="x").add(row("a", 0, claims="before"))
    with pytest.raises(ValueError, match="made to judge other claims, or on other seeds"):
        Records(path, ["acc"], {"a": "x"}, claims="after")
    assert len(Records(path, ["acc"], {"a": "x"}, claims="before").rows) == 1
    assert Records(path, ["acc"], {"a": "other settings"}, claims="after").rows == [], "these are dropped in any case"


def test_records_from_before_claims_were_noted_are_read_and_give_way_to_a_new_plan(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("cell,seed,settings,seconds,cpu_seconds,made,acc\na,0,x,1.25,0.5,today,0.5\n")
    (old,) = opened(path, a="x").rows
    assert (old.claims, old.commit, old.metrics) == ("", "", {"acc": 0.5})
    new = Records(path, ["acc"], {"a": "x"}, claims="c")
    assert not new.has("a", 0)
    new.add(row("a", 0))
    assert [r.claims for r in opened(path, a="x").rows] == ["c"]
