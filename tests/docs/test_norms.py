"""Every norm has a card and a row in the overview table."""

import re

import pytest

import syncbn
from syncbn.norm.core.registry import norm_options
from tests.docs.markdown import REPOSITORY

CARDS = REPOSITORY / "docs" / "norms"
ITEMS = ("When to use it", "Train and eval", "Batch dependence", "Extra memory", "Measured cost", "Where it wins")


@pytest.mark.parametrize("name", syncbn.available_norms())
def test_every_norm_has_a_card_that_says_all_of_it(name: str) -> None:
    card = (CARDS / f"{name}.md").read_text()
    assert f'norm_layer("{name}"' in card
    assert f"norm={name}" in card
    for item in (*ITEMS, "Where it fails", "Source"):
        assert f"**{item}**" in card, item
    shown = re.search(rf'norm_layer\("{name}"(.*?)\)`', card, re.DOTALL)
    assert shown
    for option in re.findall(r"(\w+)=", shown[1]):
        assert option in norm_options(name)


def test_the_table_has_a_row_for_every_norm_and_no_other() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.md\) \|(.*)\|$", (CARDS / "README.md").read_text(), re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == sorted(syncbn.available_norms())
    for name, link, cells in rows:
        assert name == link
        assert len(cells.split(" | ")) == 7
        assert re.search(r"\| \d\.\d\d \|", cells), "a measured time"
