"""The documentation's tables of options are up to date with the declarations."""

import re
from pathlib import Path

import pytest

from docs.option_tables import pages, with_tables
from syncbn.norm.core.options import option_fields
from syncbn.norm.core.registry import our_options
from syncbn.run.described import described_targets
from tests.docs.markdown import REPOSITORY

WITH_TABLES = [pytest.param(page, id=page.stem) for page in pages() if "<!-- options of " in page.read_text()]


@pytest.mark.parametrize("page", WITH_TABLES)
def test_a_page_has_its_tables_as_they_are_now(page: Path) -> None:
    assert with_tables(page.read_text()) == page.read_text(), "run make tables"


@pytest.mark.parametrize("name", [name for name, options in our_options().items() if option_fields(options)])
def test_the_card_of_a_norm_has_its_options(name: str) -> None:
    assert f"<!-- options of norm={name} -->" in (REPOSITORY / "docs" / "norms" / f"{name}.md").read_text()


def test_every_declaration_beside_the_norms_has_its_table() -> None:
    shown = re.findall(
        r"<!-- options of (syncbn|torch|lightning)([\w.]+) -->", (REPOSITORY / "docs" / "options.md").read_text()
    )
    assert {described_targets()["".join(target)] for target in shown} == set(described_targets().values())


def test_a_change_of_a_declaration_is_seen() -> None:
    page = REPOSITORY / "docs" / "norms" / "group.md"
    old = page.read_text().replace("| `eps` | a number above 0 |", "| `eps` | a number |")
    assert old != page.read_text() == with_tables(old)
