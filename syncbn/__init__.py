"""Batch normalization that stays exact on any number of devices and at any batch size."""

import importlib
from typing import TYPE_CHECKING, Any

from syncbn.moved import keep_old_paths

if TYPE_CHECKING:
    from syncbn.machine import DoctorReport, doctor
    from syncbn.norm import (
        CrossIterationBatchNorm,
        SyncBatchNorm,
        available_norms,
        convert,
        mean_over_ranks,
        norm_layer,
        revert,
        sync_group,
    )
    from syncbn.policy import (
        adapt,
        freeze,
        fuse,
        inspect,
        plan_fusion,
        plan_prune,
        prune,
        recalibrate,
        unfreeze,
        verify,
    )
    from syncbn.run.folder import load_run

__all__ = [
    "CrossIterationBatchNorm",
    "DoctorReport",
    "SyncBatchNorm",
    "adapt",
    "available_norms",
    "convert",
    "doctor",
    "freeze",
    "fuse",
    "inspect",
    "load_run",
    "mean_over_ranks",
    "norm_layer",
    "plan_fusion",
    "plan_prune",
    "prune",
    "recalibrate",
    "revert",
    "sync_group",
    "unfreeze",
    "verify",
]
__version__ = "0.1.0"

# Public names are imported on first use, so that a command line is checked without waiting for torch.
_HOMES = {
    "CrossIterationBatchNorm": "syncbn.norm",
    "DoctorReport": "syncbn.machine",
    "SyncBatchNorm": "syncbn.norm",
    "adapt": "syncbn.policy",
    "available_norms": "syncbn.norm",
    "convert": "syncbn.norm",
    "doctor": "syncbn.machine",
    "freeze": "syncbn.policy",
    "fuse": "syncbn.policy",
    "inspect": "syncbn.policy",
    "load_run": "syncbn.run.folder",
    "mean_over_ranks": "syncbn.norm",
    "norm_layer": "syncbn.norm",
    "plan_fusion": "syncbn.policy",
    "plan_prune": "syncbn.policy",
    "prune": "syncbn.policy",
    "recalibrate": "syncbn.policy",
    "revert": "syncbn.norm",
    "sync_group": "syncbn.norm",
    "unfreeze": "syncbn.policy",
    "verify": "syncbn.policy",
}
_SUBMODULES = ("data", "machine", "models", "norm", "policy", "training")

keep_old_paths()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"syncbn.{name}")
    raise AttributeError(f"module 'syncbn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_SUBMODULES})
