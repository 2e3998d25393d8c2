"""Lightning integration: plugin, tasks and callbacks. Importing it needs only `pip install syncbn[lightning]`."""

from typing import TYPE_CHECKING

from syncbn.lazy import lazy_names

if TYPE_CHECKING:
    from syncbn.training.callbacks.best_checkpoint import BestCheckpoint as BestCheckpoint
    from syncbn.training.callbacks.checks_folder import ChecksFolder as ChecksFolder
    from syncbn.training.callbacks.epoch_lines import EpochLines as EpochLines
    from syncbn.training.callbacks.exact_resume import ExactResume as ExactResume
    from syncbn.training.callbacks.exchange_record import ExchangeRecord as ExchangeRecord
    from syncbn.training.callbacks.finetune import FreezeNorm as FreezeNorm
    from syncbn.training.callbacks.finetune import GradualUnfreezing as GradualUnfreezing
    from syncbn.training.callbacks.finetune import TrainOnly as TrainOnly
    from syncbn.training.callbacks.last_checkpoint import LastCheckpoint as LastCheckpoint
    from syncbn.training.callbacks.loader_watch import LoaderWatch as LoaderWatch
    from syncbn.training.callbacks.momentum_schedule import MomentumSchedule as MomentumSchedule
    from syncbn.training.callbacks.monitors import Monitors as Monitors
    from syncbn.training.callbacks.monitors import NoSuchMetric as NoSuchMetric
    from syncbn.training.callbacks.nan_policy import NanPolicy as NanPolicy
    from syncbn.training.callbacks.nan_policy import NonFiniteLoss as NonFiniteLoss
    from syncbn.training.callbacks.norm_l1 import NormL1 as NormL1
    from syncbn.training.callbacks.norm_monitor import NormMonitor as NormMonitor
    from syncbn.training.callbacks.norm_profiler import NormProfiler as NormProfiler
    from syncbn.training.callbacks.norm_statistics import NormStatisticsRecorder as NormStatisticsRecorder
    from syncbn.training.callbacks.option_changes import ChangedOptions as ChangedOptions
    from syncbn.training.callbacks.plots import Plots as Plots
    from syncbn.training.callbacks.preemption import Preemption as Preemption
    from syncbn.training.callbacks.ranks_agree import RanksAgree as RanksAgree
    from syncbn.training.callbacks.ranks_agree import RanksDisagree as RanksDisagree
    from syncbn.training.callbacks.recalibrate_norm import RecalibrateNorm as RecalibrateNorm
    from syncbn.training.callbacks.sample_grids import SampleGrids as SampleGrids
    from syncbn.training.callbacks.share_loaders import SameBatches as SameBatches
    from syncbn.training.callbacks.share_loaders import ShareLoaders as ShareLoaders
    from syncbn.training.callbacks.sync_group import SyncGroup as SyncGroup
    from syncbn.training.callbacks.wandb_media import WandbMedia as WandbMedia
    from syncbn.training.callbacks.watchdog import Watchdog as Watchdog
    from syncbn.training.checkpoint import AtomicCheckpointIO as AtomicCheckpointIO
    from syncbn.training.plugin import SyncBatchNormPlugin as SyncBatchNormPlugin
    from syncbn.training.schedule import cosine_with_warmup as cosine_with_warmup
    from syncbn.training.strategy import ddp as ddp
    from syncbn.training.tasks.classification import ClassificationTask as ClassificationTask
    from syncbn.training.tasks.gan import GANTask as GANTask
    from syncbn.training.tasks.segmentation import SegmentationTask as SegmentationTask
    from syncbn.training.unequal import UnequalBatches as UnequalBatches

_HOMES = {
    "AtomicCheckpointIO": "checkpoint",
    "ChangedOptions": "callbacks.option_changes",
    "ChecksFolder": "callbacks.checks_folder",
    "ClassificationTask": "tasks.classification",
    "EpochLines": "callbacks.epoch_lines",
    "ExactResume": "callbacks.exact_resume",
    "ExchangeRecord": "callbacks.exchange_record",
    "FreezeNorm": "callbacks.finetune",
    "GANTask": "tasks.gan",
    "GradualUnfreezing": "callbacks.finetune",
    "BestCheckpoint": "callbacks.best_checkpoint",
    "LastCheckpoint": "callbacks.last_checkpoint",
    "LoaderWatch": "callbacks.loader_watch",
    "MomentumSchedule": "callbacks.momentum_schedule",
    "Monitors": "callbacks.monitors",
    "NanPolicy": "callbacks.nan_policy",
    "NoSuchMetric": "callbacks.monitors",
    "NonFiniteLoss": "callbacks.nan_policy",
    "NormL1": "callbacks.norm_l1",
    "NormMonitor": "callbacks.norm_monitor",
    "NormProfiler": "callbacks.norm_profiler",
    "NormStatisticsRecorder": "callbacks.norm_statistics",
    "Plots": "callbacks.plots",
    "Preemption": "callbacks.preemption",
    "RanksAgree": "callbacks.ranks_agree",
    "RanksDisagree": "callbacks.ranks_agree",
    "RecalibrateNorm": "callbacks.recalibrate_norm",
    "SameBatches": "callbacks.share_loaders",
    "SampleGrids": "callbacks.sample_grids",
    "SegmentationTask": "tasks.segmentation",
    "ShareLoaders": "callbacks.share_loaders",
    "SyncBatchNormPlugin": "plugin",
    "SyncGroup": "callbacks.sync_group",
    "TrainOnly": "callbacks.finetune",
    "UnequalBatches": "unequal",
    "WandbMedia": "callbacks.wandb_media",
    "Watchdog": "callbacks.watchdog",
    "cosine_with_warmup": "schedule",
    "ddp": "strategy",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
