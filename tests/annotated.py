"""Modules of people whose annotations name what only their type checker imports."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType


def annotated(folder: Path, text: str) -> ModuleType:
    """Module of a text in which names in angle brackets are such: quoted before Python 3.14, which needs no quotes."""
    quote = "" if sys.version_info >= (3, 14) else "'"
    file = folder / f"{folder.name}_annotated.py"
    file.write_text(re.sub("<(.+?)>", rf"{quote}\1{quote}", text))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
