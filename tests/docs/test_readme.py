"""README.md and the guides: their blocks run, and their figures match the pages of results."""

import re
from pathlib import Path

import pytest

from tests.docs.commands import run_page
from tests.docs.markdown import REPOSITORY, blocks

README = (REPOSITORY / "README.md").read_text()
GUIDES = REPOSITORY / "docs" / "guides"
RUN_HERE = ("choosing", "clusters", "layer", "lightning", "shipping")
CHOOSER = re.compile(r"^\| you have \| take \| measured \|\n\|---\|---\|---\|\n(?P<rows>(?:\|.*\n)+)", re.MULTILINE)
pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_the_readme(tmp_path: Path) -> None:
    run_page(blocks(README), tmp_path)
    for name in ("checkpoints/last.ckpt", "exchange.csv"):
        assert (tmp_path / "outputs" / "first" / name).is_file()


def test_it_is_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("guide", RUN_HERE)
def test_a_guide(guide: str, tmp_path: Path) -> None:
    run_page(blocks((GUIDES / f"{guide}.md").read_text()), tmp_path)


def test_every_guide_is_run() -> None:
    elsewhere = {"examples", "runs", "your-own-project"}  # test_examples.py, below, test_guides.py
    assert {guide.stem for guide in GUIDES.glob("*.md")} == {*RUN_HERE, *elsewhere}


def test_the_guide_to_runs(tmp_path: Path) -> None:
    text = (GUIDES / "runs.md").read_text()
    run_page(blocks(text), tmp_path)
    run = tmp_path / "outputs" / "first"
    cells = re.findall(r"^\| `([\w./`, ]+)` \|", text, flags=re.MULTILINE)
    names = [name for cell in cells for name in cell.replace("`", "").split(", ")]
    assert {".hydra/", "checkpoints/", "metrics.csv", "plots/", "wandb/"} <= set(names)
    for name in names:
        assert (run / name).exists() or name in ("tensorboard/", "exchange.csv"), name
    assert (tmp_path / "norms.png").is_file()


def test_the_chooser_has_eight_rows_and_stands_in_its_guide_too() -> None:
    (rows,) = (match["rows"] for match in CHOOSER.finditer(README))
    assert len(rows.splitlines()) == 8
    (again,) = (match["rows"] for match in CHOOSER.finditer((GUIDES / "choosing.md").read_text()))
    assert again.replace("(../", "(docs/") == rows


def test_the_figures_of_the_chooser_are_those_of_the_pages() -> None:
    """Each figure of a cell is on the page that the cell links to next."""
    (rows,) = (match["rows"] for match in CHOOSER.finditer(README))
    checked = 0
    for row in rows.splitlines():
        for said, page in re.findall(r"([^()]*)\([^()]*?\]\((docs/[\w/]+\.md)\)", row.split(" | ")[2]):
            text = (REPOSITORY / page).read_text()
            for figure in re.findall(r"\d+\.\d+", said):
                assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", text), f"{figure} isn't in {page}"
                checked += 1
    assert checked >= 20
