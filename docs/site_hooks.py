"""What the site has beyond the Markdown files of this folder: `make site`.

- Pages made from files at the top (README.md is the first page) and of the API, from the names that packages export.
- Links that leave this folder lead to pages of the site, too: a file of the repository is shown as it is. So the site
  is whole by itself, and a link that leads nowhere ends the build.
- explorer.html, with its links to Markdown files turned into links to pages.
"""

import importlib
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
# The packages whose exported names are the API, each with what its page begins with.
API = {
    "syncbn": "What a program of yours imports: `import syncbn`.",
    "syncbn.norm": "The layers, each a choice of `norm=`; [the cards](../norms/README.md) say when to take which.",
    "syncbn.policy": "What becomes of the statistics later, and the reports of `inspect`, `verify` and `prune`.",
    "syncbn.models": "The networks, by module. All take `norm=`; [models](../models.md) says where they come from.",
    "syncbn.training": "For Lightning: the plugin, the strategy, callbacks and tasks.",
    "syncbn.data": "DataModules and their loaders.",
}
NETWORKS = ("cnn", "dcgan", "deep", "fcn", "inception", "mlp", "pretrained", "recurrent", "resnet", "vit")
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_HREF = re.compile(r'(\b(?:href|src)=")([^"]+)(")')
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".sh": "bash", ".sbatch": "bash"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = {f"docs/{uri}": text for uri, text in (*api_pages(), ("decisions/index.md", decisions()))}
    made |= {top: (REPOSITORY / top).read_text() for top in PAGES}
    for source, text in made.items():
        _add(files, config, source, text)
    explorer = (REPOSITORY / "docs" / "explorer.html").read_text()
    files.remove(files.src_uris["explorer.html"])
    rewritten = _HREF.sub(_rewriter("docs/explorer.html", files, config, as_html=True), explorer)
    files.append(File.generated(config, "explorer.html", content=rewritten))
    for file in list(files.documentation_pages()):  # so that what they link to is there before any page is read
        if file.generated_by is None:
            _linked(file.content_string, f"docs/{file.src_uri}", files, config)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave this folder into links to pages of the site; those of made pages are right already."""
    if page.file.generated_by is not None:
        return markdown
    return _linked(markdown, f"docs/{page.file.src_uri}", files, config)


def api_pages() -> Iterator[tuple[str, str]]:
    """The address and the Markdown of each page of the API."""
    contents = ["# API\n", "| module | |", "|---|---|"]
    for package, about in API.items():
        page = f"{package.replace('.', '_')}.md"
        contents.append(f"| [`{package}`]({page}) | {about} |")
        entries = (f"::: {home}\n    options:\n      heading: {name}\n" for name, home in names(package).items())
        yield f"api/{page}", f"# {package}\n\n{about}\n\n" + "\n".join(entries)
    contents.append("\nThe command `syncbn`: [runs](../guides/runs.md); what it may be told: [options](../options.md).")
    yield "api/index.md", "\n".join(contents) + "\n"


def names(package: str) -> dict[str, str]:
    """What a page of the API documents: full names, and where each is defined, which is its anchor.

    A name that `syncbn` itself exports is on the first page alone.
    """
    found = {}
    for name in importlib.import_module(package).__all__:
        if package == "syncbn" or name not in importlib.import_module("syncbn").__all__:
            exported = getattr(importlib.import_module(package), name)
            found[f"{package}.{name}"] = f"{exported.__module__}.{exported.__qualname__}"
    if package == "syncbn.models":
        found |= {module: module for module in (f"syncbn.models.{network}" for network in NETWORKS)}
    return found


def decisions() -> str:
    """A page that lists the decisions."""
    pages = sorted((REPOSITORY / "docs" / "decisions").glob("*.md"))
    titles = (page.read_text().splitlines()[0].removeprefix("# ") for page in pages)
    lines = (f"- [{title}]({page.name})" for title, page in zip(titles, pages, strict=True))
    return "# Decisions\n\nWhat was decided, why, and what follows from it.\n\n" + "\n".join(lines) + "\n"


def _add(files: Files, config: MkDocsConfig, source: str, text: str) -> None:
    """Make a page of the site of a file of the repository."""
    uri = _uri(source)
    if uri in files.src_uris:
        files.remove(files.src_uris[uri])
    files.append(File.generated(config, uri, content=""))  # before its links are followed: pages link to each other
    text = _linked(text, source, files, config)
    files.remove(files.src_uris[uri])
    files.append(File.generated(config, uri, content=text))


def _uri(source: str) -> str:
    """Where a file of the repository stands in the site."""
    if source in PAGES:
        return PAGES[source]
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    return f"source/{source}" if source.endswith(".md") else f"source/{source}.md"


def _linked(text: str, source: str, files: Files, config: MkDocsConfig) -> str:
    """The text of a file of the repository with links within the site; fenced blocks stay."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    rewrite = _rewriter(source, files, config)
    return "".join(part if place % 2 else _LINK.sub(rewrite, part) for place, part in enumerate(parts))


def _rewriter(
    source: str, files: Files, config: MkDocsConfig, *, as_html: bool = False
) -> Callable[[re.Match[str]], str]:
    """What a link of `source` becomes. Links elsewhere, within the page and to nothing stay as they are."""

    def rewrite(match: re.Match[str]) -> str:
        target, hash_, place = match[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if (REPOSITORY / path).is_dir():
            path += "/README.md" if (REPOSITORY / path / "README.md").is_file() else "/index.md"
        if not (REPOSITORY / path).is_file() and path.removeprefix("docs/") not in files.src_uris:
            return match[0]
        if not path.startswith("docs/") and _uri(path) not in files.src_uris:
            _add(files, config, path, _shown(path))
        uri = _uri(path)
        if as_html and (file := files.src_uris.get(uri)) is not None:
            uri = file.dest_uri
        return f"{match[1]}{posixpath.relpath(uri, posixpath.dirname(_uri(source)) or '.')}{hash_}{place}{match[3]}"

    return rewrite


def _shown(path: str) -> str:
    """The page of a file that isn't one."""
    text = (REPOSITORY / path).read_text()
    if path.endswith(".md"):
        return text
    if path.endswith(".ipynb"):
        cells = ((cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"])
        return "\n\n".join(source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in cells)
    return f"# {path}\n\n````{_LANGUAGES.get(Path(path).suffix, 'text')}\n{text}````\n"
