"""Selection of a model's layers by globs of their names."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

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
    """
    included, excluded = _globs("*" if include is None else include), _globs(exclude)
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


def _globs(patterns: Globs) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns or ())


def _matches(path: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, glob) for glob in globs)
