"""Parser of the walks of CONTRIBUTING.md: their steps and files."""

import re

from tests.docs.markdown import REPOSITORY, blocks

_PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text()
WALKS = dict(re.findall(r"^## Add an? (.*?)\n(.*?)(?=^## |\Z)", _PAGE, re.MULTILINE | re.DOTALL))


def steps(walk: str) -> list[str]:
    """Steps of a walk, in order."""
    return re.split(r"^\*\*\d\. ", WALKS[walk], flags=re.MULTILINE)[1:]


def paths(step: str) -> list[str]:
    """Files that a step names; its code is for the first."""
    return re.findall(r"[`(]((?:syncbn|conf|tests|docs)/[\w/]+\.\w+)[`)]", step)


def new_files() -> set[str]:
    """Files that the walks write, and pages that they require."""
    written = {"docs/norms/pixel.md", "docs/policies/reset.md"}
    for walk in WALKS:
        for step in steps(walk):
            if any(block.language in ("python", "yaml") for block in blocks(step)):
                written.add(paths(step)[0])
    return written
