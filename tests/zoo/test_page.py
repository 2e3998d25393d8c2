"""docs/zoo.md is what its rows say, and nothing in it is wrong."""

from tests.zoo.architectures import architectures
from tests.zoo.checks import CHECKS
from tests.zoo.table import ROWS, page, read_rows


def test_the_page_is_what_the_rows_say_and_nothing_is_wrong() -> None:
    rows = read_rows()
    assert ROWS.with_suffix(".md").read_text() == page(rows)
    assert {row["name"] for row in rows} <= architectures().keys()
    bad = {
        (row["name"], check): row[check] for row in rows for check in CHECKS if row[check][:1] in "wc" and row[check]
    }
    assert bad == {}
    assert len(rows) >= 68
    folded, following = (sum(int(row[column]) for row in rows) for column in ("folded", "following"))
    assert folded >= 0.85 * following
    assert sum(row["prune"] == "right" for row in rows) >= 0.85 * len(rows)
