"""The user's project: the folder whose `pyproject.toml` has a table `[tool.syncbn]`.

    [tool.syncbn]
    packages = ["my_project"]  # what configs may name

Its `conf/` is used together with ours, and its packages are imported from the folder, installed or not. It is the
nearest such folder at or above the current one; `SYNCBN_PROJECT=<folder>` selects another.
"""

import importlib.util
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncbn.norm.core.options import suggest

VARIABLE = "SYNCBN_PROJECT"
_FILE = "pyproject.toml"
_KEYS = ("packages",)
_OTHERS = {"syncbn", "torch", "lightning", "hydra", "omegaconf", "numpy"} | sys.stdlib_module_names


@dataclass(frozen=True)
class Project:
    """A user's project.

    Attributes:
        root: folder of the project.
        packages: packages that a config's `_target_` may come from.
    """

    root: Path
    packages: tuple[str, ...]

    @property
    def conf(self) -> Path | None:
        """Folder of its configs; None if it has none."""
        folder = self.root / "conf"
        return folder if folder.is_dir() else None

    def make_importable(self) -> None:
        """Make its packages importable, here and in child processes, from the folder or from its `src/`.

        Raises:
            ValueError: a package is in neither and isn't installed.
        """
        for package in self.packages:
            top = package.partition(".")[0]
            for place in (self.root, self.root / "src"):
                if (place / top).is_dir() or (place / f"{top}.py").is_file():
                    if str(place) not in sys.path:
                        sys.path.insert(0, str(place))
                        importlib.invalidate_caches()
                    break
            else:
                if importlib.util.find_spec(top) is None:
                    raise ValueError(
                        f"{self.root / _FILE}: [tool.syncbn] packages names {package!r}, which is neither in "
                        f"{self.root} nor in its src/, and isn't installed"
                    )


def find_project(environ: Mapping[str, str] = os.environ) -> Project | None:
    """Find the project of the current folder; None outside any.

    Run folders, which may be untrusted, are never projects and contain none. Neither is a parent folder whose
    pyproject.toml belongs to another user: anyone can write one to /tmp.

    Raises:
        ValueError: `SYNCBN_PROJECT` isn't a project's folder, or `[tool.syncbn]` is invalid.
    """
    if named := environ.get(VARIABLE):
        table = _table(Path(named) / _FILE)
        if table is None:
            raise ValueError(f"{VARIABLE}={named}: that folder has no {_FILE} with a table [tool.syncbn]")
        return _project(Path(named).resolve(), table)
    found = None
    for folder in _upwards():
        if _is_run(folder):
            found = None
        elif found is None and (table := _table(folder / _FILE)) is not None:
            found = folder, table
    return None if found is None else _project(*found)


def _project(root: Path, table: Mapping[str, Any]) -> Project:
    where = f"{root / _FILE}: [tool.syncbn]"
    for key in table:
        if key not in _KEYS:
            raise ValueError(f"{where} has no key {key!r}; {suggest(key, _KEYS)}")
    packages = table.get("packages", [])
    if not isinstance(packages, list) or not all(isinstance(name, str) for name in packages):
        raise ValueError(f'{where} packages: expected a list of names, packages = ["my_project"], got {packages!r}')
    for name in packages:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"{where} packages: {name!r} isn't the name of a package")
        if name.partition(".")[0] in _OTHERS:
            raise ValueError(
                f"{where} packages: {name!r} is no package of yours; its classes are known, or not allowed"
            )
    return Project(root, tuple(packages))


def _upwards() -> Iterator[Path]:
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the folder was removed
        return
    yield from (here, *here.parents)


def _is_run(folder: Path) -> bool:
    return (folder / ".hydra" / "config.yaml").is_file() or (folder / "multirun.yaml").is_file()


def _table(file: Path) -> Mapping[str, Any] | None:
    """Table `[tool.syncbn]` of a pyproject.toml; None if it has none or isn't trusted."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if "tool.syncbn" not in text or not _is_trusted(file):
        return None
    try:
        table = tomllib.loads(text).get("tool", {}).get("syncbn")
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} can't be read: {error}") from error
    if table is not None and not isinstance(table, Mapping):
        raise ValueError(f"{file}: expected a table [tool.syncbn], got {table!r}")
    return table


def _is_trusted(file: Path) -> bool:
    """Whether its owner is this user, root, or the owner of the current folder, which the user chose to enter."""
    if not hasattr(os, "getuid"):
        return True
    return file.stat().st_uid in (os.getuid(), 0, Path.cwd().stat().st_uid)
