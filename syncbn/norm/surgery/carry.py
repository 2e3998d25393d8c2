"""What a layer has beyond what its class gives it, carried to the layer that takes its place, and back."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.registry import registered_layers

# What a conversion itself leaves in the `__dict__` of the new layer, and what it left there in version 0.1.
RECORD = "conversion"
ORIGINAL = "converted_from"

_KINDS = ("_parameters", "_buffers", "_modules")
# Parts of a class that change nothing of what its layers do.
_HARMLESS = {"extra_repr", "__init__", "__repr__", "__init_subclass__"}


@dataclass(frozen=True)
class Names:
    """Names of what a layer has: parameters, buffers, children and plain attributes."""

    parameters: frozenset[str]
    buffers: frozenset[str]
    modules: frozenset[str]
    attributes: frozenset[str]

    @classmethod
    def of(cls, layer: nn.Module) -> Names:
        """All that there are now."""
        parameters, buffers, modules = (frozenset(vars(layer)[kind]) for kind in _KINDS)
        return cls(parameters, buffers, modules, frozenset(vars(layer)))

    def __contains__(self, name: str) -> bool:
        return name in self.parameters | self.buffers | self.modules | self.attributes


def names_by_class(layer: nn.Module) -> Names:
    """What every layer of its class has; of classes that can't be asked, all that this one has."""
    if RECORD in vars(layer):
        own: Names = vars(layer)[RECORD].names
        return own
    base = base_of(layer)
    return Names.of(layer) if base is None else _names_of_class(base)  # type: ignore[arg-type]  # a class is hashable


def base_of(layer: nn.Module) -> type[nn.Module] | None:
    """The batch norm of torch, or of a registered name, that a layer is, or is a subclass of."""
    known = {*registered_layers(), *compat.BATCH_NORMS}
    return next((cls for cls in type(layer).__mro__ if cls in known and issubclass(cls, compat.BatchNormBase)), None)


@functools.cache
def _names_of_class(cls: Any) -> Names:
    return Names.of(cls(1))


def own_behaviour(layer: nn.Module, base: type[nn.Module] | None) -> list[str]:
    """What a layer does by code of its own, which another layer wouldn't do, in words.

    Args:
        layer: a batch norm.
        base: the class whose methods are known; what classes derived from it have is looked at, beside what was set on
            the layer itself. None for the layer's class.
    """
    found = [
        f"{name}, set on the layer"
        for name, value in vars(layer).items()
        if callable(getattr(type(layer), name, None)) or getattr(value, "__self__", None) is layer
    ]
    if compat.is_compiled_in_place(layer):
        found.append("compile(), called on the layer")
    for cls in type(layer).__mro__[: type(layer).__mro__.index(base)] if base is not None else ():
        found += [
            name
            for name, value in vars(cls).items()
            if isinstance(value, FunctionType | classmethod | staticmethod | property | functools.cached_property)
            and name not in _HARMLESS
        ]
    if getattr(layer, "qconfig", None) is not None:
        found.append("qconfig, of quantization")
    found += [f"the observer {name}" for name, child in layer.named_children() if compat.is_observer(child)]
    return list(dict.fromkeys(found))


def carry(source: nn.Module, target: nn.Module) -> None:
    """Give `target` all that `source` has beyond its class, and take from it what `source` has no longer.

    Parameters and buffers are the same objects. Where a hook computes a parameter, as pruning and the old `weight_norm`
    do, `weight` is a plain attribute beside `weight_orig` and `weight_mask`, and becomes one of `target`, too.

    Raises:
        ValueError: `target` means something else by a name; nothing has changed then.
    """
    own, known = names_by_class(source), names_by_class(target)
    extras = {kind: _extras(vars(source)[kind], own) for kind in _KINDS}
    attributes = _extras(vars(source), own) | _of_subclass(source)
    for name, value in {**extras["_parameters"], **extras["_buffers"], **extras["_modules"], **attributes}.items():
        missing = object()
        mine = getattr(target, name, missing)
        if mine is not value and mine is not missing and name in known:
            raise ValueError(f"its {name!r} is another thing in the new layer: rename it, or delete it first")
    computed = [name for name in own.parameters if isinstance(vars(source).get(name), Tensor)]
    for name in computed:
        if name not in target._parameters and name not in vars(target):
            raise ValueError(
                f"a hook computes its {name}, which the new layer doesn't have: make that permanent first, such as by "
                f"torch.nn.utils.prune.remove(layer, {name!r})"
            )
    for kind in _KINDS:
        mine = vars(target)[kind]
        for name in [name for name in mine if name not in known and name not in own]:
            del mine[name]
        mine.update({name: value for name, value in extras[kind].items() if name not in vars(target)})
    kept = (*own.attributes, ORIGINAL, RECORD)
    for name in [name for name in vars(target) if name not in known and name not in kept]:
        del vars(target)[name]
    vars(target).update(attributes)
    target._non_persistent_buffers_set |= source._non_persistent_buffers_set & set(extras["_buffers"])
    for name in own.parameters & known.parameters:
        if name in computed:
            target._parameters.pop(name, None)
            vars(target)[name] = vars(source)[name]
        elif name in source._parameters:
            vars(target).pop(name, None)
            target._parameters[name] = source._parameters[name]
    if target._parameters.keys() == source._parameters.keys():  # in the order of `state_dict`
        for name in list(source._parameters):
            target._parameters[name] = target._parameters.pop(name)


def _extras(of: dict[str, Any], own: Names) -> dict[str, Any]:
    return {name: value for name, value in of.items() if name not in own and name not in (ORIGINAL, RECORD)}


def _of_subclass(layer: nn.Module) -> dict[str, Any]:
    """Plain attributes of a class between a layer and the batch norm that it is."""
    base, found = base_of(layer), dict[str, Any]()
    if base is None or RECORD in vars(layer):
        return found
    for cls in reversed(type(layer).__mro__[: type(layer).__mro__.index(base)]):
        found |= {
            name: value
            for name, value in vars(cls).items()
            if not name.startswith("_") and not hasattr(value, "__get__")
        }
    return {name: value for name, value in found.items() if name not in vars(layer)}
