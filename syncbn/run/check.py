"""Check of composed configs, before torch and Lightning are imported.

Parts without declared options, such as a `_target_` of another package, are checked when they are built.
"""

import importlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from syncbn.launch.run_id import check_run_id
from syncbn.norm.core.options import field_names, mistakes, suggest
from syncbn.norm.core.registry import known_options
from syncbn.run.described import options_of
from syncbn.run.limits import limit_mistakes
from syncbn.run.main_options import Chosen, Main
from syncbn.run.project import find_project
from syncbn.run.targets import imported, target_mistakes, targets, users_packages

REQUIRED_GROUPS = ("norm", "model", "data", "task", "optimizer", "trainer")


def config_mistakes(config: Mapping[str, Any]) -> list[str]:
    """Check a composed and resolved config of `syncbn train`; returns a line for each mistake."""
    found = mistakes(config, Main)
    if isinstance(config.get("run_id"), str):
        found += _run_id_mistakes(config["run_id"])
    norm = config.get("norm")
    if isinstance(norm, Mapping):
        found += norm_mistakes(norm)
    found += _path_mistakes(config)
    if isinstance(trainer := config.get("trainer"), Mapping):
        found += limit_mistakes(trainer, trains=config.get("train") is not False)
    found += _missing_targets(config)
    for where, node in targets(config):
        if wrong := target_mistakes(where, node):
            found += wrong
        elif (options := options_of(node["_target_"])) is not None:
            found += mistakes({key: value for key, value in node.items() if key != "_target_"}, options, where)
    return found


def _missing_targets(config: Mapping[str, Any]) -> Iterator[str]:
    built = {group: config.get(group) for group in (*REQUIRED_GROUPS, "scheduler") if group != "norm"}
    for group in ("callbacks", "logger"):
        if isinstance(named := config.get(group), Mapping):
            built |= {f"{group}.{name}": node for name, node in named.items()}
    for where, node in built.items():
        if isinstance(node, Mapping) and "_target_" not in node:
            yield f"{where}._target_: missing; it names what is built, such as my_package.MyClass"


def norm_mistakes(norm: Mapping[str, Any]) -> list[str]:
    """Check the group `norm` for unknown options and values out of range."""
    name = norm.get("name")
    if name not in known_options():
        import_guests()
    schema = known_options().get(name) if isinstance(name, str) else None
    if schema is None:
        return [f"norm.name: got {name!r}; {suggest(str(name), known_options())}"]
    chosen = {key: norm[key] for key in field_names(Chosen) if key in norm and key not in field_names(schema)}
    unknown = [key for key in norm if key not in ("name", *chosen, *field_names(schema))]
    known = {key: value for key, value in norm.items() if key not in ("name", *chosen, *unknown)}
    return (
        mistakes(chosen, Chosen, "norm")
        + mistakes(known, schema, "norm")
        + [
            f"norm.{key}: no such key of norm={name}; {suggest(key, field_names(schema))}{norms_with(key)}"
            for key in unknown
        ]
    )


def norms_with(option: str) -> str:
    """End of a message about an option that other norms have; empty if none has it."""
    owners = [name for name, schema in known_options().items() if option in field_names(schema)]
    return f" ({option!r} is an option of norm={', norm='.join(owners)})" if owners else ""


@cache
def import_guests() -> None:
    """Import the user's packages, which register their norms, if the norm isn't one of ours.

    Raises:
        ValueError: one of them can't be imported.
    """
    if (project := find_project()) is not None:
        project.make_importable()
    for package in users_packages():
        if importlib.util.find_spec(package.partition(".")[0]):
            imported(package, package)
            for module in _registering(package):
                imported(module, module)


def _registering(package: str) -> Iterator[str]:
    """The modules in a package that register norms, by their text: its `__init__` need not import them."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).rglob("*.py")):
            text = file.read_text(errors="replace")
            if "syncbn" in text and re.search(r"\bregister\(", text) and file.stem not in ("__main__", "__init__"):
                yield ".".join((package, *file.relative_to(folder).with_suffix("").parts))


def conf_dir() -> Path:
    """Folder of Hydra's configs: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).parents[1]
    packaged = here / "conf"
    return packaged if packaged.is_dir() else here.parent / "conf"


def _run_id_mistakes(run_id: str) -> list[str]:
    try:
        check_run_id(run_id)
    except ValueError as error:
        return [f"run_id: {error}"]
    return []


def _path_mistakes(config: Mapping[str, Any]) -> list[str]:
    """Check that places to write to are in the run's folder, and the run's folder is in the output root.

    A config may come from an untrusted folder, and could otherwise name any place of the file system.
    """
    paths = config.get("paths")
    if not isinstance(paths, Mapping) or not isinstance(paths.get("output_dir"), str):
        return []  # reported by the schema
    run = paths["output_dir"]
    found = [] if inside(run, str(config.get("output_root"))) else [f"paths.output_dir: {_elsewhere(run, config)}"]
    for where, key, place in _places({group: config.get(group) for group in ("callbacks", "logger", "trainer")}):
        if not inside(place, run):
            found.append(f"{where}.{key}: {place!r} is outside of the run's folder {run!r}; leave it at its default")
    return found


def inside(place: str, folder: str) -> bool:
    """Whether a path stays in a folder, lexically: links are the user's choice."""
    return Path(os.path.abspath(place)).is_relative_to(os.path.abspath(folder))


def _elsewhere(run: str, config: Mapping[str, Any]) -> str:
    return f"{run!r} is outside of output_root={config.get('output_root')}; set output_root=<folder> instead"


def _places(node: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Find all places in nested configs that are written to: owner, key, and path."""
    if not isinstance(node, Mapping):
        return
    folder = ""
    for key in ("dirpath", "save_dir", "folder"):
        if isinstance(node.get(key), str):
            folder = node[key]
            yield where, key, folder
    for key in ("filename", "name", "version", "sub_dir"):
        if folder and isinstance(node.get(key), str):
            yield where, key, os.path.join(folder, node[key])
    for key, child in node.items():
        yield from _places(child, f"{where}.{key}" if where else str(key))


def unknown_choice(group: str, got: str, choices: list[str]) -> str:
    """Message for a misspelt choice, such as `norm=snyc`."""
    return f"{group}={got}: no such choice; {suggest(got, choices)}"
