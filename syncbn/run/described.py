"""Lookup of the declared options of a config's `_target_`, without importing torch or the target."""

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
    """Options of all classes and functions that `conf/` may name, by dotted name, of the module or public.

    Those of `syncbn/models/vit.py` are in `OPTIONS` of `vit_options.py` beside it.
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
    """Options of a `_target_`, also under its path of version 0.1; None if they aren't declared."""
    return described_targets().get(target) or described_targets().get(renamed(target))


def options_at(where: str, node: Mapping[str, Any]) -> type | None:
    """Options of a part of a config with this dotted name: a norm's by its `name`, others' by their `_target_`."""
    return known_options().get(str(node.get("name"))) if where == "norm" else options_of(str(node.get("_target_")))


def _modules(package: str) -> Iterator[str]:
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        if module.ispkg:
            yield from _modules(module.name)
        else:
            yield module.name


def _public(home: str, name: str) -> Iterator[str]:
    """Packages around a module that export the name, too."""
    package = home.rpartition(".")[0]
    while package != "syncbn":
        if name in getattr(importlib.import_module(package), "__all__", ()):
            yield package
        package = package.rpartition(".")[0]
