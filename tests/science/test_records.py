"""Records survive a kill, and forget runs of other settings."""

from pathlib import Path

from science.records import Record, Records


def row(cell: str, seed: int, settings: str = "x", acc: float = 0.5) -> Record:
    return Record(cell, seed, settings, 1.25, 0.5, "Python 3, today", {"acc": acc})


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
    assert again.rows[0][:6] == ("a", 0, "x", 1.25, 0.5, "Python 3, today")


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
    wider.add(Record("a", 1, "x", 1, 1, "now", {"acc": 0.1, "loss": 2.0}))
    assert path.read_text().splitlines()[0].endswith("acc,loss")
    assert opened(path, a="x").values("a", "loss") == {1: 2.0}
