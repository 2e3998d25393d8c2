"""Name -> layer: what `norm=` of a model, `conf/norm/*.yaml` and `syncbn.convert` accept."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from torch import nn

from syncbn.norm.core.momentum import from_keras
from syncbn.norm.core.options import suggest

NormFactory = Callable[[int], nn.Module]

_LAYERS: dict[str, Callable[..., nn.Module]] = {}
_HOME = __package__.removesuffix(".core")  # where the layers are


@cache
def layer_modules() -> tuple[ModuleType, ...]:
    """The modules of `syncbn.norm` that are no packages: each registers its layers when it is imported."""
    home = importlib.import_module(_HOME)
    found = sorted(module.name for module in pkgutil.iter_modules(home.__path__) if not module.ispkg)
    return tuple(importlib.import_module(f"{_HOME}.{name}") for name in found)


def register(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorate a layer class, or a function that returns a layer, so that `name` builds it.

    The first argument is `num_features`; every other one is an option with a default, which
    `norm_layer(name, option=...)`, `convert(model, name, option=...)` and `norm.option=...` on the command line set.

    Raises:
        ValueError: the name is taken.
    """

    def add(layer: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if not layer.__module__.startswith(f"{_HOME}."):
            layer_modules()  # whose names are taken
        if name in _LAYERS:
            raise ValueError(f"the norm {name!r} is registered already, by {_LAYERS[name]}; choose another name")
        _LAYERS[name] = layer
        return layer

    return add


def available_norms() -> tuple[str, ...]:
    """The names that `norm_layer`, `convert` and every model's `norm=` accept, sorted."""
    layer_modules()
    return tuple(sorted(_LAYERS))


def norm_options(name: str) -> tuple[str, ...]:
    """The options of a norm: the arguments of its layer after `num_features`, and where one is `momentum`, Keras's."""
    arguments = tuple(inspect.signature(_lookup(name)).parameters)[1:]
    return (*arguments, "keras_momentum") if "momentum" in arguments else arguments


@dataclass(frozen=True)
class _Named:
    """A norm by name with its options: picklable, comparable and readable in a printed config."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, num_features: int) -> nn.Module:
        return _lookup(self.name)(num_features, **self.options)

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"norm_layer({self.name!r}{options})"


def norm_layer(norm: str | NormFactory, **options: Any) -> NormFactory:
    """A function from `num_features` to a normalization layer.

    Args:
        norm: one of `available_norms()`, or a function of `num_features`, which is returned as it is.
        options: arguments of the layer beside `num_features`, for example `groups=32` of `"group"`. A layer with a
            `momentum` takes it as `keras_momentum` instead, too: see `syncbn.norm.core.momentum`.

    Raises:
        ValueError: no such norm, or no such option; both `momentum` and `keras_momentum`.
        TypeError: `norm` is neither a name nor a function, or options stand beside a function.
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
    """The name of a norm, and those of its options that aren't the layer's defaults.

    Raises:
        TypeError: a function that has no name, and whatever `norm_layer` raises.
    """
    named = norm_layer(norm)
    if not isinstance(named, _Named):
        raise TypeError(f"expected a norm's name, or norm_layer(name, ...), got the function {norm!r}")
    usual = {p.name: p.default for p in inspect.signature(_lookup(named.name)).parameters.values()}
    return named.name, {key: value for key, value in named.options.items() if value != usual[key]}


def has_bias(norm: NormFactory, num_features: int) -> bool:
    """Whether the layer adds a bias of its own, which makes the bias of the convolution before it redundant."""
    return getattr(norm(num_features), "bias", None) is not None


def _lookup(name: str) -> Callable[..., nn.Module]:
    layer_modules()
    if name not in _LAYERS:
        raise ValueError(f"unknown norm {name!r}; {suggest(name, available_norms())}")
    return _LAYERS[name]
