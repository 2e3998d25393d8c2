"""Imports between rooms and between files run one way, including lazy and type-checking ones."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
MODULES = {
    ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file
    for top in ("syncbn", "science", "benchmarks")
    for file in (REPOSITORY / top).rglob("*.py")
}
# `import syncbn` and `syncbn.norm` lead to everything below them, for users. Inside, nobody goes through them.
FACADES = {"syncbn", "syncbn.norm"}
SUBROOMS = {"core", "kernels", "fusion", "surgery"}
# From bottom to top; rooms of one line don't import each other.
FLOORS = (
    {"syncbn.moved", "syncbn.lazy"},
    {"syncbn.norm.kernels"},
    {"syncbn.norm.core"},
    {"syncbn.norm.fusion"},
    {"syncbn.norm.layers"},
    {"syncbn.norm.surgery"},
    {"syncbn.norm"},
    {"syncbn.policy", "syncbn.models", "syncbn.data", "syncbn.launch"},
    {"syncbn.training", "syncbn.machine"},
    {"syncbn.run"},
    {"syncbn.cli"},
    {"syncbn", "syncbn.__main__"},
    {"science", "benchmarks"},
)


def room_of(module: str) -> str:
    """Room of a module: a package, a part of `norm`, or a facade."""
    parts = module.split(".")
    if module in FACADES or parts[0] != "syncbn":
        return module if module in FACADES else parts[0]
    if parts[1] == "norm":
        return f"syncbn.norm.{parts[2]}" if parts[2] in SUBROOMS else "syncbn.norm.layers"
    return ".".join(parts[:2])


def imports(module: str, file: Path) -> Iterator[str]:
    """Our modules that a file imports anywhere, or names in a lazily imported string."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source


def of_ours(module: str, file: Path) -> set[str]:
    """Other modules of ours that a file imports."""
    return {imported for imported in imports(module, file) if imported in MODULES and imported != module}


@cache
def files() -> dict[str, set[str]]:
    """Modules that each module imports."""
    return {module: of_ours(module, file) for module, file in MODULES.items()}


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """One circle of a graph, each node before one that imports it; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def arrows() -> dict[str, dict[str, list[str]]]:
    """Rooms that each room imports from, and where."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for module, others in files().items():
        for imported in others:
            if room_of(imported) != room_of(module):
                found[room_of(module)][room_of(imported)].append(f"{module} imports {imported}")
    return found


def test_no_circle_between_rooms() -> None:
    around = circle(arrows())
    why = [arrows()[b][a][0] for a, b in pairwise(around)]
    assert not around, f"{' <- '.join(around)}: {why}"


def test_no_circle_between_files() -> None:
    around = circle(files())
    assert not around, " <- ".join(around)


def test_a_circle_of_a_type_checking_import_is_found(tmp_path: Path) -> None:
    low, high = "syncbn.norm.core.options", "syncbn.norm.core.shared_options"
    (tmp_path / "low.py").write_text(f"if TYPE_CHECKING:\n    from {high} import Tracking\n")
    (tmp_path / "high.py").write_text(f"from {low} import option\n")
    found = circle({low: of_ours(low, tmp_path / "low.py"), high: of_ours(high, tmp_path / "high.py")})
    assert set(found) == {low, high}


def test_arrows_point_down() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    unknown = {room_of(module) for module in MODULES} - floor.keys()
    assert not unknown, f"say in FLOORS where {unknown} belong"
    up = [
        places[0]
        for room, others in arrows().items()
        for other, places in others.items()
        if floor[other] >= floor[room]
    ]
    assert not up


def test_an_import_in_a_function_and_a_relative_one_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        "def f():\n    from ..run import folder\n    from syncbn.cli import train\n    import syncbn.data\n"
    )
    assert list(imports("syncbn.norm.a", file)) == ["syncbn.run.folder", "syncbn.cli.train", "syncbn.data"]


def test_norm_holds_layers_alone() -> None:
    """Every top-level module of `norm` registers a name, or has the options of one that does."""
    for file in (REPOSITORY / "syncbn" / "norm").glob("*.py"):
        if file.name != "__init__.py" and not file.stem.endswith("_options"):
            assert re.search(r"^@register\(", file.read_text(), re.M), file.name
