"""Registry of norms by name, for `norm=` of models, configs and `syncbn.convert`. Imports no torch by itself."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from syncbn.norm.core.momentum import from_keras
from syncbn.norm.core.options import field_names, suggest
from syncbn.norm.core.signatures import (
    OF_CONFIGS,
    arguments_of,
    check_declared,
    options_from_signature,
    takes_more,
)

if TYPE_CHECKING:
    from torch import nn

NormFactory = Callable[[int], "nn.Module"]

_LAYERS: dict[str, Callable[..., "nn.Module"]] = {}
_OPTIONS: dict[str, type] = {}
_HOME = __package__.removesuffix(".core")  # package of the layers


def register(
    name: str, options: type | None = None
) -> Callable[[Callable[..., "nn.Module"]], Callable[..., "nn.Module"]]:
    """Register a layer class, or a function that returns a layer, under `name` (a decorator).

    The first argument is `num_features`; all others are options with defaults, set by `norm_layer(name, option=...)`,
    `convert(model, name, option=...)` and `norm.option=...` on the command line.

    Args:
        name: name of the norm.
        options: dataclass of its options (see `syncbn.norm.core.options`), from which the signature takes its defaults;
            without one, the signature defines names, defaults and types.

    Raises:
        ValueError: the name is taken; the dataclass has options that the layer doesn't have, or different defaults.
        TypeError: the options aren't a dataclass.
    """

    def add(layer: Callable[..., "nn.Module"]) -> Callable[..., "nn.Module"]:
        ours = layer.__module__.startswith(f"{_HOME}.")
        known = _LAYERS.get(name)
        if (known or (not ours and name in our_options())) and not _is_redefined(known, layer):
            raise ValueError(f"the norm {name!r} is registered already, by {_lookup(name)}; choose another name")
        if options is not None:
            check_declared(layer, options)
        _OPTIONS[name] = options or options_from_signature(layer)
        _LAYERS[name] = layer
        return layer

    return add


def _is_redefined(known: Any, layer: Any) -> bool:
    """Whether both come from the same code: a notebook cell that is run again, or a module after a failed import."""
    places = [[getattr(each, name, None) for name in ("__module__", "__qualname__")] for each in (known, layer)]
    return known is not layer and None not in places[0] and places[0] == places[1]


@cache
def our_options() -> dict[str, type]:
    """Options of this package's norms, by name; imports no layer."""
    modules = (importlib.import_module(f"{_HOME}.{name}") for name in _modules() if name.endswith("_options"))
    return {name: options for module in modules for name, options in module.OPTIONS.items()}


def known_options() -> dict[str, type]:
    """Options of all norms, including those registered by other packages, by name; imports no layer."""
    return {**our_options(), **_OPTIONS}


@cache
def layer_modules() -> tuple[ModuleType, ...]:
    """Modules of `syncbn.norm` with layers, which are registered on import."""
    return tuple(importlib.import_module(f"{_HOME}.{name}") for name in _modules())


def _modules() -> list[str]:
    home = importlib.import_module(_HOME)
    return sorted(module.name for module in pkgutil.iter_modules(home.__path__) if not module.ispkg)


def available_norms() -> tuple[str, ...]:
    """Sorted names that `norm_layer`, `convert` and every model's `norm=` accept."""
    return tuple(sorted(known_options()))


def registered_layers() -> tuple[type["nn.Module"], ...]:
    """Layer classes registered so far; creating an instance requires that its module was imported."""
    return tuple(layer for layer in _LAYERS.values() if isinstance(layer, type))


def norm_options(name: str) -> tuple[str, ...]:
    """Options that `norm_layer` takes: the layer's arguments after the first, and those shared by all norms."""
    layer = _lookup(name)
    named = [argument.name for argument in arguments_of(layer)]
    more = [option for option in field_names(_OPTIONS[name]) if takes_more(layer) and option not in OF_CONFIGS]
    return tuple(dict.fromkeys([*named, *more, *(["keras_momentum"] if "momentum" in named else [])]))


@dataclass(frozen=True)
class _Named:
    """A norm by name with its options: picklable, comparable and readable in a printed config."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, num_features: int) -> "nn.Module":
        return _lookup(self.name)(num_features, **self.options)

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"norm_layer({self.name!r}{options})"


def norm_layer(norm: str | NormFactory, **options: Any) -> NormFactory:
    """Make a function from `num_features` to a normalization layer.

    Args:
        norm: one of `available_norms()`, or a function of `num_features`, which is returned unchanged.
        options: arguments of the layer besides `num_features`, for example `groups=32` of `"group"`; `syncbn options`
            lists them. A layer with a `momentum` also accepts `keras_momentum`, see `syncbn.norm.core.momentum`.

    Raises:
        ValueError: an unknown norm or option; both `momentum` and `keras_momentum`.
        TypeError: `norm` is neither a name nor a function; a function with options.
    """
    if not isinstance(norm, str):
        if not callable(norm):
            raise TypeError(f"norm must be a name or a function of num_features, got {type(norm).__name__}")
        if options:
            raise TypeError(f"options {sorted(options)} go with a norm's name; bind them to the function instead")
        return norm
    allowed = norm_options(norm)
    for option in options:
        if option not in allowed:
            raise ValueError(f"norm {norm!r} has no option {option!r}; {suggest(option, allowed)}")
    if (keras_momentum := options.pop("keras_momentum", None)) is not None:
        if "momentum" in options:
            given = f"momentum={options['momentum']} and keras_momentum={keras_momentum}"
            raise ValueError(f"got {given}: give one of them, not both; the one is 1 less the other")
        options["momentum"] = from_keras(keras_momentum)
    return _Named(norm, options)


def unusual_options(norm: str | NormFactory) -> tuple[str, dict[str, Any]]:
    """Name of a norm, and its options that differ from the layer's defaults.

    Raises:
        TypeError: a function without a name; as `norm_layer`.
    """
    named = norm_layer(norm)
    if not isinstance(named, _Named):
        raise TypeError(f"expected a norm's name, or norm_layer(name, ...), got the function {norm!r}")
    usual = {argument.name: argument.default for argument in arguments_of(_lookup(named.name))}
    return named.name, {key: value for key, value in named.options.items() if value != usual.get(key)}


def has_bias(norm: NormFactory, num_features: int) -> bool:
    """Whether the layer adds a bias, which makes the bias of the preceding convolution redundant."""
    return getattr(norm(num_features), "bias", None) is not None


def _lookup(name: str) -> Callable[..., "nn.Module"]:
    layer_modules()
    if name not in _LAYERS:
        raise ValueError(f"unknown norm {name!r}; {suggest(name, available_norms())}")
    return _LAYERS[name]
