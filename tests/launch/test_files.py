"""Files of a run, on machines whose locale isn't UTF-8."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WRITE = """
import sys
from pathlib import Path
from syncbn.launch.files import replace_text
replace_text(Path(sys.argv[1]), "gr\\xf6\\xdfe \\u03b3 \\u56fe")
"""


@pytest.mark.parametrize("settings", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_file_is_utf_8_in_every_locale(tmp_path: Path, settings: dict[str, str]) -> None:
    """OmegaConf and Hydra read a run's config.yaml as UTF-8, in every locale too."""
    file = tmp_path / "config.yaml"
    subprocess.run([sys.executable, "-c", WRITE, file], env={**os.environ, **settings}, check=True)
    assert file.read_bytes().decode() == "größe γ 图"
