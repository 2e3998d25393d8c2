"""Adapters of `convert` for other packages' batch normalization layers, recognized without importing them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.capabilities import takes_step
from syncbn.norm.core.registry import registered_layers
from syncbn.norm.core.shared_options import Shared
from syncbn.norm.core.tracking import TrackingNorm
from syncbn.norm.surgery.carry import base_of, own_behaviour


@dataclass(frozen=True)
class Adapter:
    """Conversion of one kind of layer.

    Attributes:
        matches: whether a module is of this kind.
        arguments: the arguments that would build the module: `num_features`, `eps`, `momentum`, ...
        finish: transfers what this kind has beyond parameters and buffers, from (new, old).
        knows_methods: whether the adapter vouches for methods that subclasses override; otherwise they are refused.
        known_as: name of a class for whose methods it vouches, and not for those of classes derived from it.
    """

    matches: Callable[[nn.Module], bool]
    arguments: Callable[[nn.Module], dict[str, Any]]
    finish: Callable[[nn.Module, nn.Module], None] = lambda new, old: None
    knows_methods: bool = True
    known_as: str = ""


def adapter_for(module: nn.Module) -> Adapter | None:
    """Adapter of a layer that can be converted, None for other modules.

    Raises:
        ValueError: a batch normalization whose conversion would lose something.
    """
    for adapter in _ADAPTERS:
        if adapter.matches(module):
            known = _class_named(module, adapter.known_as) if adapter.known_as else None
            own = own_behaviour(module, known if adapter.knows_methods else base_of(module))
            if own:
                raise ValueError(_refusal_of_own(module, own))
            return adapter
    if isinstance(module, compat.BatchNormBase):
        raise ValueError(_refusal(module))
    return None


def register_adapter(adapter: Adapter) -> None:
    """Register another kind of layer for `convert`; it takes precedence over earlier ones."""
    _ADAPTERS.insert(0, adapter)


def looks_like_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a batch normalization, convertible or not; recurrent ones, which take a step, don't count."""
    if takes_step(module):
        return False
    return isinstance(module, compat.BatchNormBase) or any(a.matches(module) for a in _ADAPTERS)


def _refusal(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return f"{kind} doesn't know its number of features yet: run one batch through the model first"
    if hasattr(module, "parametrizations"):
        return f"{kind} is parametrized: remove it with torch.nn.utils.parametrize.remove_parametrizations first"
    return (
        f"{kind} has a forward of its own, which a new layer would lose: leave it out with exclude=, or describe it to "
        "syncbn.norm.surgery.adapters.register_adapter"
    )


def _refusal_of_own(module: nn.Module, own: list[str]) -> str:
    return (
        f"{type(module).__name__} has {', '.join(own)}, which a new layer wouldn't do: leave it out with exclude=, or "
        "describe it to syncbn.norm.surgery.adapters.register_adapter"
    )


def _has_known_forward(module: nn.Module) -> bool:
    if not isinstance(module, compat.BatchNormBase) or hasattr(module, "parametrizations"):
        return False
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) or "forward" in module.__dict__:
        return False
    # A registered norm is defined by its options, so another norm can replace it as by name.
    by_name = isinstance(module, TrackingNorm) and type(module) in registered_layers()
    return by_name or type(module).forward in (compat.BatchNormBase.forward, nn.SyncBatchNorm.forward)


def _plain_arguments(module: Any) -> dict[str, Any]:
    per_channel = next((t for t in (module.weight, module.running_mean) if t is not None and t.dim() == 1), None)
    return {
        # Torch's layers don't read the number, and who prunes them by hand may leave it as it was.
        "num_features": module.num_features if per_channel is None else len(per_channel),
        "eps": module.eps,
        "momentum": module.momentum,
        "affine": module.affine,
        "track_running_stats": module.running_mean is not None,  # the flag may have been switched since
        "bias": module.bias is not None or not module.affine,
        **{name: getattr(module, name) for name in Shared.__annotations__ if hasattr(module, name)},
    }


def _is_frozen(module: nn.Module) -> bool:
    """Whether it is a FrozenBatchNorm2d of torchvision or detectron2, with only buffers."""
    buffers = {"weight", "bias", "running_mean", "running_var"}
    return _class_named(module, _FROZEN) is not None and buffers <= set(module._buffers)


def _frozen_arguments(module: Any) -> dict[str, Any]:
    return {"num_features": len(module.weight), "eps": _eps_of(module)}


@torch.no_grad()
def _eps_of(module: Any) -> float:
    """The eps that a frozen layer adds to the variance; some, such as DETR's, only have it in their forward.

    Raises:
        ValueError: it computes something else than a batch norm in evaluation mode.
    """
    said = getattr(module, "eps", None)
    if module.running_var.is_meta and said is not None:
        return float(said)
    probe = copy.copy(module)

    def output(x: Tensor, **buffers: Tensor) -> Tensor:
        vars(probe)["_buffers"] = buffers
        return type(module).forward(probe, x.view(1, -1, 1, 1)).flatten()

    numbers = torch.linspace(-1.5, 2, len(module.weight), dtype=torch.float64, device="cpu")
    one, zero = torch.ones_like(numbers), torch.zeros_like(numbers)
    if said is None:
        y = output(one, weight=one, bias=zero, running_mean=zero, running_var=one * _SMALL)[0].item()
        said = round(abs(y) ** -2 - _SMALL, 18) if y else 0.0
    eps = float(said)
    weight, bias, mean, var = numbers.cos(), -one, -numbers, numbers.exp()
    expected = (numbers - mean) / (var + eps).sqrt() * weight + bias
    found = output(numbers, weight=weight, bias=bias, running_mean=mean, running_var=var)
    if not torch.allclose(found, expected, rtol=1e-5):
        raise ValueError(
            f"{type(module).__name__} computes something else than batch normalization in evaluation mode: leave it "
            "out with exclude=, or describe it to syncbn.norm.surgery.adapters.register_adapter"
        )
    return eps


def _is_activated(module: nn.Module) -> bool:
    """Whether it is timm's BatchNormAct2d: a batch normalization, then dropout, then an activation."""
    return _class_named(module, _ACTIVATED) is not None and {"act", "drop"} <= set(module._modules)


def _finish_activated(new: nn.Module, old: nn.Module) -> None:
    cls: Any = type(new)
    new.__class__ = _with_activation(cls)
    new.drop, new.act = old.drop, old.act


class _ThenActivation(nn.Module):
    drop: nn.Module
    act: nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.act(self.drop(super().forward(*args, **kwargs)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle_activated, (type(self).__bases__[1],), self.__dict__


@functools.cache
def _with_activation(layer: Any) -> Any:
    return type(f"{layer.__name__}Act", (_ThenActivation, layer), {})


def _unpickle_activated(layer: Any) -> nn.Module:
    cls = _with_activation(layer)
    return cls.__new__(cls)


def _class_named(module: nn.Module, name: str) -> type[nn.Module] | None:
    return next((cls for cls in type(module).__mro__ if cls.__name__ == name), None)


_FROZEN, _ACTIVATED = "FrozenBatchNorm2d", "BatchNormAct2d"
_SMALL = 1e-6  # a variance beside which an eps is seen to 1e-18; without any, some layers that add none give NaN
_ADAPTERS = [
    Adapter(_is_frozen, _frozen_arguments, known_as=_FROZEN),
    Adapter(_is_activated, _plain_arguments, _finish_activated, known_as=_ACTIVATED),
    Adapter(_has_known_forward, _plain_arguments, knows_methods=False),
]
