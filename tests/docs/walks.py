"""The walks of CONTRIBUTING.md: what each of its steps says, and to which files."""

import re

from tests.docs.markdown import REPOSITORY, blocks

_PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text()
WALKS = dict(re.findall(r"^## Add an? (.*?)\n(.*?)(?=^## |\Z)", _PAGE, re.MULTILINE | re.DOTALL))


def steps(walk: str) -> list[str]:
    """The steps of a walk, in order."""
    return re.split(r"^\*\*\d\. ", WALKS[walk], flags=re.MULTILINE)[1:]


def paths(step: str) -> list[str]:
    """The files that a step names; what it shows is of the first."""
    return re.findall(r"[`(]((?:syncbn|conf|tests|docs)/[\w/]+\.\w+)[`)]", step)


def new_files() -> set[str]:
    """The files that the walks write, and the pages that they ask for."""
    written = {"docs/norms/pixel.md", "docs/policies/reset.md"}
    for walk in WALKS:
        for step in steps(walk):
            if any(block.language in ("python", "yaml") for block in blocks(step)):
                written.add(paths(step)[0])
    return written
