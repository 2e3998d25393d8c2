"""Write a small working project: a network, data and a norm of your own, configs, a test.

Its folder is <name>/ in the current folder. If files exist there already, nothing is written.
"""

import importlib.util
import keyword
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from syncbn import cli
from syncbn.cli.arguments import Parser
from syncbn.norm.core.options import required
from syncbn.run.errors import user_mistakes

NEEDS = ()
_TEMPLATE = "my_project"  # placeholder of the project's name in the template
_TAKEN = ("conf", "outputs", "tests")  # folders of the project beside its package


@dataclass
class Options:
    """Options of `syncbn init`."""

    name: str = required("the project's, and its package's: small letters, digits and _")


PARSER = Parser("syncbn init", __doc__, Options, words="name")


def main() -> None:
    """Read `<name>` and write the project."""
    PARSER.main(init)


def init(arguments: list[str]) -> Path:
    """Write a project to a folder of its name, and print the next commands.

    Args:
        arguments: `<name>`.
    """
    with user_mistakes():
        name = _checked(PARSER.read(arguments).name)
        template = _templates() / _TEMPLATE
        places = {
            file: Path(name, str(file.relative_to(template)).replace(_TEMPLATE, name))
            for file in sorted(template.rglob("*"))
            if file.is_file() and "__pycache__" not in file.parts
        }
        in_the_way = {
            path for place in places.values() for path in place.parents if path.exists() and not path.is_dir()
        }
        if existing := [*map(str, in_the_way), *(str(place) for place in places.values() if place.exists())]:
            raise ValueError(f"{', '.join(existing)} would be overwritten: take another name, or another folder")
    for file, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(file.read_text(encoding="utf-8").replace(_TEMPLATE, name), encoding="utf-8")
    print("\n".join(map(str, places.values())))
    print(f"\ncd {name} && syncbn train experiment=shapes")
    return Path(name)


def _checked(name: str) -> str:
    """Check that the name is valid for a package and not taken."""
    plain = re.sub(r"\W", "_", name.strip()).lower().strip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        usable = re.fullmatch(r"[a-z][a-z0-9_]*", plain) and not keyword.iskeyword(plain)
        hint = f"; did you mean {plain!r}?" if usable else ""
        raise ValueError(
            f"{name!r} can't be a package's name; allowed: small letters, digits and _, a letter first, and none of "
            f"Python's keywords{hint}"
        )
    if name in _TAKEN:
        raise ValueError(f"{name!r} is a folder of the project beside its package: take another name")
    if name in sys.stdlib_module_names or _is_installed(name):
        raise ValueError(f"there is a package {name!r} already, which the project's would hide: take another name")
    return name


def _is_installed(name: str) -> bool:
    """Whether a package of that name can be imported; the folder that the project goes to is none by itself."""
    found = importlib.util.find_spec(name)
    if found is not None and found.origin is None:
        return {Path(place).resolve() for place in found.submodule_search_locations or ()} != {Path(name).resolve()}
    return found is not None


def _templates() -> Path:
    """Folder of the templates: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).parents[1]
    packaged = here / "templates"
    return packaged if packaged.is_dir() else here.parent / "templates"


if __name__ == "__main__":
    cli.run("init")
