"""One name, one thing: no two rooms have classes of the same name, and no helper is duplicated."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
# Classes of options are named after what they describe, or "Options" within a command.
OPTIONS = ("_options.py", "run/options.py", "/cli/", "/command.py")


def definitions(kind: type[ast.AST]) -> Iterator[tuple[str, str, ast.AST]]:
    """Name, file and node of each top-level class or function."""
    for top in ("syncbn", "science"):
        for file in sorted((REPOSITORY / top).rglob("*.py")):
            path = file.relative_to(REPOSITORY).as_posix()
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, kind):
                    yield node.name, path, node


def test_public_classes_have_names_of_their_own() -> None:
    files = defaultdict(list)
    for name, path, _ in definitions(ast.ClassDef):
        if not name.startswith("_") and not any(part in path for part in OPTIONS):
            files[name].append(path)
    assert {name: paths for name, paths in files.items() if len(paths) > 1} == {}


def test_no_function_is_written_twice() -> None:
    bodies = defaultdict(list)
    for name, path, node in definitions(ast.FunctionDef):
        assert isinstance(node, ast.FunctionDef)
        body = "".join(map(ast.unparse, node.body))
        if len(body) > 60:  # shorter ones may be equal by chance
            bodies[ast.unparse(node.args), body].append(f"{path}: {name}")
    assert [places for places in bodies.values() if len(places) > 1] == []
