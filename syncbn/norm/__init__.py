"""Normalization layers, one file a method, over `core`, `kernels`, `fusion` and `surgery`.

A file of this folder that registers a name is found automatically (`syncbn.norm.core.registry`). Names are imported on
first use, so that options can be read without torch. The layers import nothing but torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncbn.norm.adaptive import AdaptiveBatchNorm, domain, set_domain
    from syncbn.norm.batch import BatchNorm
    from syncbn.norm.batch_renorm import BatchRenorm
    from syncbn.norm.core.groups import sync_group
    from syncbn.norm.core.moments import mean_over_ranks
    from syncbn.norm.core.registry import available_norms, norm_layer, register
    from syncbn.norm.cross_iteration import CrossIterationBatchNorm
    from syncbn.norm.decorrelated import DecorrelatedBatchNorm
    from syncbn.norm.dynamic_erf import DynamicErf
    from syncbn.norm.dynamic_tanh import DynamicTanh
    from syncbn.norm.filter_response import FilterResponseNorm
    from syncbn.norm.frozen import FrozenBatchNorm
    from syncbn.norm.ghost import GhostBatchNorm
    from syncbn.norm.group import GroupNorm
    from syncbn.norm.instance import InstanceNorm
    from syncbn.norm.layer import LayerNorm
    from syncbn.norm.learnable_momentum import LearnableMomentumBatchNorm
    from syncbn.norm.moving_average import MovingAverageBatchNorm
    from syncbn.norm.recurrent import RecurrentBatchNorm
    from syncbn.norm.rms import RMSNorm
    from syncbn.norm.spectral import SpectralNorm
    from syncbn.norm.surgery.convert import convert, revert
    from syncbn.norm.switchable import SwitchableNorm
    from syncbn.norm.sync import SyncBatchNorm
    from syncbn.norm.weight import WeightNorm

__all__ = [
    "AdaptiveBatchNorm",
    "BatchNorm",
    "BatchRenorm",
    "CrossIterationBatchNorm",
    "DecorrelatedBatchNorm",
    "DynamicErf",
    "DynamicTanh",
    "FilterResponseNorm",
    "FrozenBatchNorm",
    "GhostBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LearnableMomentumBatchNorm",
    "MovingAverageBatchNorm",
    "RMSNorm",
    "RecurrentBatchNorm",
    "SpectralNorm",
    "SwitchableNorm",
    "SyncBatchNorm",
    "WeightNorm",
    "available_norms",
    "convert",
    "domain",
    "mean_over_ranks",
    "norm_layer",
    "register",
    "revert",
    "set_domain",
    "sync_group",
]

_FUNCTIONS = {
    "available_norms": "core.registry",
    "convert": "surgery.convert",
    "mean_over_ranks": "core.moments",
    "norm_layer": "core.registry",
    "register": "core.registry",
    "revert": "surgery.convert",
    "sync_group": "core.groups",
}


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"syncbn.norm.{_FUNCTIONS[name]}"), name)
    if not name.startswith("_"):
        from syncbn.norm.core.registry import layer_modules

        for module in layer_modules():
            if getattr(getattr(module, name, None), "__module__", None) == module.__name__:
                return getattr(module, name)
    raise AttributeError(f"module 'syncbn.norm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
