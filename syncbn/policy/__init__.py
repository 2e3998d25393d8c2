"""Operations on trained models: recalibrate, adapt, freeze, fuse, prune, inspect and verify. Imports only torch."""

from syncbn.policy.adapt import adapt
from syncbn.policy.batch_statistics import use_batch_statistics, use_running_statistics
from syncbn.policy.freeze import freeze, unfreeze
from syncbn.policy.fuse import Fusion, fuse, plan_fusion
from syncbn.policy.inspect import inspect
from syncbn.policy.prune import Cost, Pruning, cost_of, plan_prune, prune
from syncbn.policy.recalibrate import recalibrate
from syncbn.policy.report import NormReport, NormRow, NormWarning
from syncbn.policy.tent import Tent
from syncbn.policy.verify import VerifyReport, verify

__all__ = [
    "Cost",
    "Fusion",
    "NormReport",
    "NormRow",
    "NormWarning",
    "Pruning",
    "Tent",
    "VerifyReport",
    "adapt",
    "cost_of",
    "freeze",
    "fuse",
    "inspect",
    "plan_fusion",
    "plan_prune",
    "prune",
    "recalibrate",
    "unfreeze",
    "use_batch_statistics",
    "use_running_statistics",
    "verify",
]
