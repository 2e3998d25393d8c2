"""Commands of `syncbn`: each file here with a `main()` is one, named after the file.

The first line of its docstring is its line in `syncbn --help`. A command's imports happen only once it is chosen. A
command that doesn't need the trainer's packages declares `NEEDS = ()`.
"""

import ast
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from syncbn.cli import unshadow as unshadow  # first, since the others import inspect
from syncbn.launch.pipes import can_say_everything, reader_may_leave
from syncbn.launch.secrets import guard_the_screen
from syncbn.launch.terminal import terminal_may_close
from syncbn.launch.world import current_world
from syncbn.run.errors import fail

TRAINER = ("hydra", "lightning", "torchmetrics", "sklearn", "matplotlib", "rich")
_SCRIPTS = ("reproduce", "scaling")  # need science/ and benchmarks/, which a wheel doesn't contain
_HELP = """\
usage: syncbn <command> [key=value] ...

{commands}

syncbn <command> --help says what a command takes. `python -m syncbn` is the same as `syncbn`."""


def main() -> None:
    """Run the command that the first word of the command line names."""
    with reader_may_leave():
        _main()


def _main() -> None:
    name, *rest = sys.argv[1:] or [""]
    if name in ("-h", "--help", "help"):
        print(overview())
    elif name in ("-V", "--version"):
        from importlib.metadata import version

        print(f"syncbn {version('syncbn')}")
    elif name in ("-sc", "--shell-completion"):
        _complete(rest)
    elif not name:
        print(overview(), file=sys.stderr)
        raise SystemExit(2)
    elif name not in (known := commands()):
        fail(_unknown(name, known))
    else:
        sys.argv = [sys.argv[0], *rest]
        run(name)


def commands() -> dict[str, str]:
    """Commands and their summary lines, read from the files without importing them."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[file.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    del found["__init__"]
    return found


def overview() -> str:
    """Text of `syncbn --help`."""
    known = commands()
    width = max(map(len, known))
    return _HELP.format(commands="\n".join(f"  {name:<{width}}  {summary}" for name, summary in known.items()))


def run(command: str, package: str = __name__) -> None:
    """Call `main()` of `<package>.<command>`, which reads `sys.argv[1:]`, or name the packages that are missing."""
    can_say_everything()
    terminal_may_close()
    guard_the_screen()
    try:
        module = importlib.import_module(f"{package}.{command}")
        needed = getattr(module, "NEEDS", TRAINER)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in TRAINER:
            raise
        needed = TRAINER
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        fail(f'{command} needs the trainer\'s packages ({", ".join(missing)} not found): pip install "syncbn[train]"')
    try:
        current_world()
    except ValueError as error:
        fail(str(error))
    with reader_may_leave():  # scripts/ call `run` themselves
        module.main()


def _complete(words: list[str]) -> None:
    """Answer the shell: `eval "$(syncbn -sc install=bash)"` lets it ask. Hydra's answers are to overrides alone."""
    typed = os.environ.get("COMP_LINE", "")
    typed = typed[: int(os.environ.get("COMP_POINT", len(typed)))]
    program, _, after = typed.partition(" ")
    command, space, overrides = after.lstrip().partition(" ")
    if typed and not space:
        print(*(name for name in commands() if name.startswith(command)))
    elif not typed or command == "train":
        line = f"{program} {overrides}"
        os.environ |= {"COMP_LINE": line, "COMP_POINT": str(len(line))} if typed else {}
        sys.argv = [sys.argv[0], "-sc", *words]
        run("train")


def _unknown(name: str, known: dict[str, str]) -> str:
    if name in _SCRIPTS:
        return f"{name} is a script of the repository, not of the package: in a checkout, python scripts/{name}.py"
    if "=" in name or name.startswith("-"):
        return f"{name}: which command? syncbn train {name}, say; commands: {', '.join(known)}"
    # Imports inspect; `run` has to hide scripts/inspect.py first.
    from syncbn.norm.core.options import suggest

    return f"{name}: no such command; {suggest(Path(name).stem, known)}"
