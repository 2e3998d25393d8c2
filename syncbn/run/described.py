"""Which declared options a `_target_` of a config has: found without importing torch, or what it names."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from syncbn.moved import renamed
from syncbn.norm.core.registry import known_options
from syncbn.run.options import OPTIONS

_PACKAGES = ("syncbn.models", "syncbn.data", "syncbn.training")


@cache
def described_targets() -> dict[str, type]:
    """The options of each class and function that `conf/` may name, by its dotted names: its module's, and public ones.

    Those of `syncbn/models/vit.py` stand in `vit_options.py` beside it, in `OPTIONS`.
    """
    found = dict(OPTIONS)
    for package in _PACKAGES:
        for module in _modules(package):
            if module.endswith("_options"):
                for name, options in getattr(importlib.import_module(module), "OPTIONS", {}).items():
                    home = module.removesuffix("_options")
                    found |= {f"{place}.{name}": options for place in (home, *_public(home, name))}
    return found


def options_of(target: str) -> type | None:
    """The options of what a `_target_` names, under a path of version 0.1 too; None where they aren't declared."""
    return described_targets().get(target) or described_targets().get(renamed(target))


def options_at(where: str, node: Mapping[str, Any]) -> type | None:
    """The options of a part of a config with this dotted name: a norm's by its `name`, others by their `_target_`."""
    return known_options().get(str(node.get("name"))) if where == "norm" else options_of(str(node.get("_target_")))


def _modules(package: str) -> Iterator[str]:
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        if module.ispkg:
            yield from _modules(module.name)
        else:
            yield module.name


def _public(home: str, name: str) -> Iterator[str]:
    """The packages around a module that have the name too."""
    package = home.rpartition(".")[0]
    while package != "syncbn":
        if name in getattr(importlib.import_module(package), "__all__", ()):
            yield package
        package = package.rpartition(".")[0]
