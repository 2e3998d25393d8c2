"""Normalization layers. Imports torch and nothing else."""

from syncbn.norm.batch import BatchNorm
from syncbn.norm.batch_free import GroupNorm, InstanceNorm, LayerNorm
from syncbn.norm.convert import convert, revert
from syncbn.norm.moments import mean_over_ranks
from syncbn.norm.registry import available_norms, norm_layer, register
from syncbn.norm.sync import SyncBatchNorm

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "SyncBatchNorm",
    "available_norms",
    "convert",
    "mean_over_ranks",
    "norm_layer",
    "register",
    "revert",
]
