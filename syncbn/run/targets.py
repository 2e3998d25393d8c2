"""Check of a config's `_target_`: it must be what its place expects, from the allowed packages.

A config may come from an untrusted run folder, so the named object is checked before it is called.
"""

import functools
import importlib
import inspect
import os
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from syncbn.moved import renamed
from syncbn.norm.core.options import suggest
from syncbn.run.project import find_project

ALLOWED_VARIABLE = "SYNCBN_ALLOWED_PACKAGES"


@dataclass(frozen=True)
class Kind:
    """Kind of object that a place of the config expects.

    Attributes:
        what: description.
        bases: dotted names of classes; the target must be a subclass, or return one.
        packages: allowed packages, besides those that the user has allowed.
        built_later: whether the receiver builds it from a partial, such as an optimizer in a task.
    """

    what: str
    bases: tuple[str, ...]
    packages: tuple[str, ...] = ()
    built_later: bool = False


KINDS = {
    "model": Kind("a network (torch.nn.Module)", ("torch.nn.Module",), ("syncbn.models", "torch.nn")),
    "data": Kind("a LightningDataModule", ("lightning.pytorch.LightningDataModule",), ("syncbn.data",)),
    "task": Kind("a LightningModule", ("lightning.pytorch.LightningModule",), ("syncbn.training",)),
    "optimizer": Kind("an optimizer", ("torch.optim.Optimizer",), ("torch.optim",), built_later=True),
    "scheduler": Kind(
        "a learning-rate schedule",
        ("torch.optim.lr_scheduler.LRScheduler",),
        ("syncbn.training", "torch.optim.lr_scheduler"),
        built_later=True,
    ),
    "trainer": Kind("a Trainer", ("lightning.pytorch.Trainer",), ("lightning.pytorch.Trainer",)),
    "trainer.strategy": Kind(
        "a strategy",
        ("lightning.pytorch.strategies.Strategy",),
        (
            "syncbn.training",
            "lightning.pytorch.strategies",
        ),
    ),
    "trainer.profiler": Kind("a profiler", ("lightning.pytorch.profilers.Profiler",), ("lightning.pytorch.profilers",)),
    "callbacks": Kind(
        "a callback",
        ("lightning.pytorch.Callback",),
        (
            "syncbn.training",
            "lightning.pytorch.callbacks",
        ),
    ),
    "logger": Kind(
        "a logger",
        ("lightning.pytorch.loggers.Logger",),
        (
            "syncbn.training",
            "lightning.pytorch.loggers",
        ),
    ),
}
PART = Kind(
    "a part of a network, an optimizer, a schedule, a metric or a callback",
    ("torch.nn.Module", "torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler", "lightning.pytorch.Callback"),
    ("syncbn.models", "syncbn.norm", "torch.nn", "torch.optim", "torchmetrics", "lightning.pytorch.callbacks"),
)
_ADVICE = (
    'packages of your own: start in a folder whose pyproject.toml has packages = ["name"] under [tool.syncbn], or '
    f"export {ALLOWED_VARIABLE}=name,name"
)
_NAMED = {"callbacks", "logger"}  # groups whose keys are names, each with its own target


def kind_at(where: str) -> Kind:
    """Kind expected at a dotted name: "model", "callbacks.ema", "model.activation"."""
    group, _, rest = where.partition(".")
    if group in _NAMED and rest and "." not in rest and "[" not in rest:
        return KINDS[group]
    return KINDS.get(where, PART)


def targets(node: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Find all mappings with a `_target_`, at any depth, also in lists, with their dotted names."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield where, node
        for key, child in node.items():
            yield from targets(child, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield from targets(child, f"{where}[{index}]")


def users_packages() -> tuple[str, ...]:
    """Packages that the user's project and environment allow.

    A config can't allow packages itself: it may come from an untrusted run folder.
    """
    project = find_project()
    named = os.environ.get(ALLOWED_VARIABLE, "")
    return (*(project.packages if project else ()), *(name.strip() for name in named.split(",") if name.strip()))


def target_mistakes(where: str, node: Mapping[str, Any]) -> list[str]:
    """Check the name of a `_target_`, without importing anything."""
    target, kind = node["_target_"], kind_at(where)
    if not isinstance(target, str):
        return [f"{where}._target_: expected the dotted name of {kind.what}, got {target!r}"]
    allowed = (*kind.packages, *users_packages())
    if not _is_in(renamed(target), allowed):
        packages = f"{kind.what} ({', '.join(allowed)})"
        return [f"{where}._target_: {target!r} is not in an allowed package for {packages}; {_ADVICE}"]
    if node.get("_partial_") and kind is not PART and not kind.built_later:
        return [f"{where}._partial_: {kind.what} is built from this config; leave _partial_ out"]
    return []


def checked_object(where: str, target: str) -> Any:
    """Resolve a `_target_` and check that it is what its place expects.

    A class must be a subclass of an expected class. A function must return one by its annotation; functions of the
    user's packages may lack an annotation, and are judged by their result. Objects that an allowed package only
    imports, such as `torch.nn.functional.warnings.sys.exit`, aren't allowed.

    Raises:
        ValueError: it isn't, or doesn't exist.
    """
    kind = kind_at(where)
    found = resolve(target)
    if (reason := _refusal(found, kind)) is not None:
        raise ValueError(f"{where}._target_: {target!r} {reason}; expected {kind.what}")
    return found


def check_made(where: str, made: Any) -> None:
    """Raise `ValueError` if a built object isn't what its place expects, for functions without annotation."""
    kind = kind_at(where)
    if kind is not PART and not isinstance(made, _classes(kind)):
        raise ValueError(f"{where}._target_ returned a {type(made).__name__}; expected {kind.what}")


def resolve(target: str) -> Any:
    """Find an object by its dotted name, which begins with a module.

    Raises:
        ValueError: it doesn't exist; the message says up to where the name is valid.
    """
    if (project := find_project()) is not None and _is_in(target, project.packages):
        project.make_importable()
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ValueError(f"{target!r} isn't the dotted name of a class or function")
    found = imported(parts[0], target)
    for depth, part in enumerate(parts[1:], start=1):
        above = ".".join(parts[:depth])
        if hasattr(found, part):
            found = getattr(found, part)
        elif inspect.ismodule(found) and hasattr(found, "__path__"):
            found = imported(f"{above}.{part}", target)
        else:
            raise ValueError(_no_such_name(target, above, part, found))
    return found


def import_targets(config: Mapping[str, Any]) -> None:
    """Import the modules of all targets of a config. What can't be imported is told where it is built."""
    for _, part in targets(config):
        with suppress(ValueError):
            resolve(part["_target_"])


def imported(module: str, target: str) -> Any:
    """A module, which `target` is in or is.

    Raises:
        ValueError: it can't be imported; the message says where it breaks off.
    """
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module that reads the command line exits
        above, _, last = module.rpartition(".")
        if not (isinstance(error, ModuleNotFoundError) and error.name == module):
            raise ValueError(f"{target!r}: {module} can't be imported: {_told(error)}") from error
        if above:
            raise ValueError(_no_such_name(target, above, last, importlib.import_module(above))) from error
        raise ValueError(f"{target!r}: there is no package {module!r} here; is it installed?") from error


def _no_such_name(target: str, above: str, name: str, found: Any) -> str:
    names = [other for other in dir(found) if not other.startswith("_")]
    close = [other for other in names if other[:2].lower() == name[:2].lower()]
    return f"{target!r}: {above} has no {name!r}; {suggest(name, (close or names)[:12])}"


def users_line(error: BaseException) -> str:
    """Last line of a user's package that an error came through, as " (file, line n)"; empty if there is none."""
    place, packages = "", tuple[str, ...]()
    with suppress(ValueError):  # the project's file is what is wrong
        packages = users_packages()
    for frame, line in traceback.walk_tb(error.__traceback__):
        if _is_in(str(frame.f_globals.get("__name__")), packages):
            place = f" ({frame.f_code.co_filename}, line {line})"
    return place


def _told(error: BaseException) -> str:
    """Describe an import error with the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = "" if isinstance(error, SyntaxError) else f" ({last.filename}, line {last.lineno})"
    return f"{type(error).__name__}: {error}{place}"


def _refusal(found: Any, kind: Kind) -> str | None:
    """Why an object isn't what is expected; None if it is."""
    if isinstance(found, functools.partial):
        return _refusal(found.func, kind)
    if not callable(found):
        return f"is a {type(found).__name__}, not a class or function"
    home = getattr(found, "__module__", None) or ""
    own = _is_in(home, users_packages())
    if not own and not _is_in(home, _homes(kind)):
        return f"is from {home!r}"
    if inspect.isclass(found):
        if issubclass(found, _classes(kind)) or (own and kind is PART):
            return None
        other = any(base.__module__.startswith("pytorch_lightning.") for base in found.__mro__)
        return "derives from pytorch_lightning's: import lightning.pytorch instead" if other else "is another class"
    private = getattr(found, "__name__", "_").startswith("_")
    if not own and (kind is PART or private or not inspect.isfunction(found) or "." in found.__qualname__):
        return "is no class, and no function that builds one"
    returned = _returned(found)
    if own and (kind is PART or returned is None):
        return None
    fits = returned is not None and any(issubclass(one, _classes(kind)) for one in returned)
    return None if fits else "is a function that returns something else"


def _homes(kind: Kind) -> tuple[str, ...]:
    """Packages where the classes with public names are defined: the Trainer is in a separate package."""
    return tuple("lightning.pytorch.trainer" if name == "lightning.pytorch.Trainer" else name for name in kind.packages)


def _classes(kind: Kind) -> tuple[type, ...]:
    return tuple(resolve(name) for name in kind.bases)


def _returned(function: Any) -> list[type] | None:
    """Classes in a function's return annotation; None without a readable one."""
    try:
        hint = get_type_hints(inspect.unwrap(function)).get("return", Any)
    except Exception:  # a type-checking import
        return None
    if get_origin(hint) in (Union, types.UnionType):
        hints = [one for one in get_args(hint) if one is not type(None)]
    else:
        hints = [hint]
    classes = [get_origin(one) or one for one in hints]
    return None if any(one is Any or not inspect.isclass(one) for one in classes) else classes


def _is_in(name: str, packages: Iterable[str]) -> bool:
    """Whether a dotted name is in one of the packages."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)
