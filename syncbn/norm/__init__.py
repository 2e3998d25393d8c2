"""Normalization layers. Imports torch and nothing else."""

from syncbn.norm.adaptive import AdaptiveBatchNorm, domain, set_domain
from syncbn.norm.batch import BatchNorm
from syncbn.norm.batch_free import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from syncbn.norm.batch_renorm import BatchRenorm
from syncbn.norm.convert import convert, revert
from syncbn.norm.cross_iteration import CrossIterationBatchNorm
from syncbn.norm.decorrelated import DecorrelatedBatchNorm
from syncbn.norm.dynamic import DynamicErf, DynamicTanh
from syncbn.norm.filter_response import FilterResponseNorm
from syncbn.norm.frozen import FrozenBatchNorm
from syncbn.norm.ghost import GhostBatchNorm
from syncbn.norm.groups import sync_group
from syncbn.norm.learnable_momentum import LearnableMomentumBatchNorm
from syncbn.norm.moments import mean_over_ranks
from syncbn.norm.moving_average import MovingAverageBatchNorm
from syncbn.norm.recurrent import RecurrentBatchNorm
from syncbn.norm.registry import available_norms, norm_layer, register
from syncbn.norm.reparametrized import SpectralNorm, WeightNorm
from syncbn.norm.switchable import SwitchableNorm
from syncbn.norm.sync import SyncBatchNorm

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
