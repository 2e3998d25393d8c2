"""The site builds strictly, and documents all exported names."""

import html
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import syncbn
from tests.docs.markdown import REPOSITORY

pytest.importorskip("mkdocs", reason='needs mkdocs-material: pip install -e ".[dev]"')


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", REPOSITORY / "docs" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = hooks()


def build(folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(folder, REPOSITORY / "mkdocs.yml")
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.parametrize("package", HOOKS.API)
def test_every_exported_name_is_documented(package: str, site: Path) -> None:
    page = (site / "api" / f"{package.replace('.', '_')}.html").read_text()
    for name, home in HOOKS.names(package).items():
        assert re.search(rf'<h2 id="{home}"[^>]*>\s*{name}\s', page), name


@pytest.mark.parametrize("package", HOOKS.API)
def test_every_exported_name_has_a_docstring(package: str) -> None:
    for name, home in HOOKS.names(package).items():
        module, _, last = home.rpartition(".")
        found = importlib.import_module(home) if name == home else getattr(importlib.import_module(module), last)
        assert found.__doc__, name
        if inspect.isclass(found):
            for method, function in vars(found).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    assert inspect.getdoc(getattr(found, method)), f"{name}.{method}"


def test_signatures_have_values_for_defaults(site: Path) -> None:
    page = html.unescape(re.sub(r"<[^>]+>", "", (site / "api" / "syncbn.html").read_text()))
    signature = page[page.index("SyncBatchNorm(\n") :]
    signature = signature[: signature.index("\n)")]
    assert f"eps: float = {inspect.signature(syncbn.SyncBatchNorm).parameters['eps'].default}" in signature
    for package in HOOKS.API:
        named = re.sub(r"<[^>]+>", "", (site / "api" / f"{package.replace('.', '_')}.html").read_text())
        assert not re.search(r"= \w*(?:Options|Tracking)\.\w", named), package


def test_pages_link_within_the_site_or_to_https(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        for link in re.findall(r"""\b(?:href|src)=["']?([^"'\s>]+)""", text.partition("</head>")[2]):
            target, _, place = html.unescape(link).partition("#")
            if page.name == "404.html" or re.match(r"https://|mailto:|data:", target):
                continue
            reached = (page.parent / target).resolve() if target else page
            assert reached.exists(), f"{page.relative_to(site)} links to {link}"
            if place and reached.suffix == ".html":
                there = html.unescape(reached.read_text())
                assert f'id="{place}"' in there or f"id={place}" in there, f"{page.relative_to(site)} links to {link}"


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.search(r"""<(?:script|link|img)[^>]+(?:src|href)=["']?https?://""", page.read_text()), page


def test_the_explorer_is_served_as_it_is_but_for_its_links(site: Path) -> None:
    ours, theirs = ((place / "explorer.html").read_text() for place in (REPOSITORY / "docs", site))
    attribute = re.compile(r'\b(?:href|src)="[^"]*"')
    assert attribute.sub("", ours) == attribute.sub("", theirs)
    assert ".md" not in "".join(attribute.findall(theirs))


@pytest.mark.slow
def test_a_dead_link_ends_the_build(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "index.md"
    page.parent.mkdir()
    page.write_text("[nothing](nothing.md) [nowhere](index.md#nowhere)\n")
    config = (REPOSITORY / "mkdocs.yml").read_text()
    kept = re.sub(
        r"^(?:hooks: .*|plugins:\n(?: .*\n)+|nav:\n(?: .*\n)+|site_dir.*)",
        "",
        config,
        flags=re.M,
    )
    (tmp_path / "mkdocs.yml").write_text(kept)
    built = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert built.returncode != 0
    assert "nothing.md" in built.stderr + built.stdout
    assert "#nowhere" in built.stderr + built.stdout
