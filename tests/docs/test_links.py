"""The pages refer only to existing files, anchors, public names and Python modules."""

import importlib
import re
from pathlib import Path

import pytest

from tests.docs.markdown import REPOSITORY, blocks, pages, prose
from tests.docs.walks import new_files

LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HREF = re.compile(r"""\b(?:href|src)=["'](?P<target>[^"']+)["']""")
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?:syncbn|conf|tests|docs|scripts|benchmarks|kernels)/[\w./-]*|[\w-]+\.(?:md|toml|txt)")
NAME = re.compile(r"\bsyncbn(?:\.[A-Za-z_]\w*)+")
MADE_LATER = new_files()  # by the reader, in CONTRIBUTING.md

HTML = [pytest.param(page, id=page.name) for page in sorted((REPOSITORY / "docs").rglob("*.html"))]
PAGES = [pytest.param(page, id=str(page.relative_to(REPOSITORY))) for page in pages()]


def resolve(name: str) -> object:
    """Resolve a dotted name; `AttributeError` or `ImportError` if it doesn't exist."""
    parts = name.split(".")
    found: object = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], start=2):
        known = hasattr(found, part)
        found = getattr(found, part) if known else importlib.import_module(".".join(parts[:depth]))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(prose(page.read_text())):
        target = match["target"].partition("#")[0]
        if target and "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which doesn't exist"


@pytest.mark.parametrize("page", HTML)
def test_links_of_html_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [match["target"] for match in HREF.finditer(text)]
    assert links
    for target, _, place in (link.partition("#") for link in links):
        if target and not re.match(r"https://|data:", target):
            assert (page.parent / target).is_file(), f"{page.name} links to {target}, which doesn't exist"
        if place and not target:
            assert f'id="{place}"' in text, f"{page.name} links to #{place}, which isn't there"


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_the_text_exist(page: Path) -> None:
    for code in CODE.findall(prose(page.read_text())):
        if PATH.fullmatch(code) and code not in MADE_LATER:
            places = [REPOSITORY / code, page.parent / code, REPOSITORY / "syncbn" / "norm" / code]
            assert any(place.exists() for place in places), f"{page.name} names {code}, which doesn't exist"


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_exist(page: Path) -> None:
    text = page.read_text()
    code = "".join(block.text for block in blocks(text) if block.language != "diff")  # a diff makes names
    made_later = tuple(path.removesuffix(".py").replace("/", ".") for path in MADE_LATER)
    for name in sorted(set(NAME.findall(prose(text) + code))):
        if not name.startswith(made_later):
            resolve(name)


def test_an_unknown_name_would_be_found() -> None:
    with pytest.raises(ImportError):
        resolve("syncbn.verify_nothing")
    with pytest.raises(ImportError):
        resolve("syncbn.norm.surgery.adapters.nothing")


def test_every_decision_is_numbered_and_has_its_three_parts() -> None:
    decisions = sorted((REPOSITORY / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in decisions] == list(range(1, len(decisions) + 1))
    for page in decisions:
        headings = re.findall(r"^#+ .*$", page.read_text(), flags=re.MULTILINE)
        assert headings[0].startswith(f"# {int(page.name[:4])}. ")
        assert headings[1:] == ["## Context", "## Decision", "## Consequences"]
