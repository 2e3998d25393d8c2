"""Selection of a model's layers by globs of their names."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

Globs = str | Iterable[str] | None


def select_layers(
    model: nn.Module, is_layer: Callable[[nn.Module], bool], include: Globs = None, exclude: Globs = None
) -> list[tuple[str, nn.Module]]:
    """Select layers with an included name and no excluded one; returns (name, layer), each layer once.

    Args:
        model: model to search, including itself.
        is_layer: predicate of selectable modules.
        include: globs of module names, as in `model.named_modules()`: "layer4.*", "*.downsample.1". All when None.
        exclude: globs of module names that aren't selected.

    Raises:
        ValueError: a glob that matches no layer.
        TypeError: something else than globs.
    """
    included, excluded = ("*",) if include is None else globs(include) or (), globs(exclude) or ()
    places = [(path, module) for path, module in model.named_modules(remove_duplicate=False) if is_layer(module)]
    for glob in (*included, *excluded):
        if glob != "*" and not any(fnmatchcase(path, glob) for path, _ in places):
            names = ", ".join(path for path, _ in places[:6]) + (", ..." if len(places) > 6 else "")
            raise ValueError(f"no normalization layer is named {glob!r}; this model has: {names or 'none'}")
    left_out = {module for path, module in places if _matches(path, excluded)}
    chosen: dict[nn.Module, str] = {}
    for path, module in places:
        if module not in left_out and _matches(path, included):
            chosen.setdefault(module, path)
    return [(path, module) for module, path in chosen.items()]


def globs(patterns: Globs) -> tuple[str, ...] | None:
    """Globs as a tuple.

    Raises:
        TypeError: something else than a str or several of them.
    """
    if patterns is None:
        return None
    found = (patterns,) if isinstance(patterns, str) else tuple(patterns) if isinstance(patterns, Iterable) else None
    if found is None or not all(isinstance(glob, str) for glob in found):
        got = type(patterns).__name__ if found is None else f"{type(patterns).__name__} of {_kinds(found)}"
        raise TypeError(
            "include and exclude are globs of module names, a str or a list of them, such as "
            f'"layer4.*" for those in model.named_modules(), got {got}'
        )
    return found


def _kinds(values: tuple[Any, ...]) -> str:
    return ", ".join(dict.fromkeys(type(value).__name__ for value in values))


def _matches(path: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, glob) for glob in globs)
