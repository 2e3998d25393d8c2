"""Every block of the guide to your own project is run, in order and in one folder, as a reader would type it there.

- Bash lines run as they are; those that train get overrides that make them short.
- Python and YAML blocks begin with the path of the file that they are; the table of pyproject.toml must be one that the
  project has.
"""

import re
import tomllib
from pathlib import Path

import pytest

from tests.cli.projects import short, succeeded
from tests.docs.markdown import REPOSITORY, blocks

GUIDES = [REPOSITORY / "docs" / "guides" / "your-own-project.md"]  # test_readme.py runs the others
PATH = re.compile(r"# ([\w./]+)\n")


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_every_block_of_a_guide_is_run(guide: Path, tmp_path: Path) -> None:
    for block in blocks(guide.read_text()):
        if block.language == "bash":
            for line in block.text.splitlines():
                succeeded(short(line), tmp_path)
        elif block.language == "toml":
            (project,) = tmp_path.glob("*/pyproject.toml")
            table = tomllib.loads(block.text)["tool"]["syncbn"]
            assert tomllib.loads(project.read_text())["tool"]["syncbn"] == table
        else:
            assert block.language in ("python", "yaml"), f"a block of {block.language!r} isn't checked by anything"
            named = PATH.match(block.text)
            assert named is not None, f"this block doesn't begin with its path:\n{block.text}"
            place = tmp_path / named[1]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(block.text)
