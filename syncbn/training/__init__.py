"""The Lightning side: a plugin, a task module and callbacks. `pip install syncbn[lightning]` is enough to import it."""

from syncbn.training.callbacks.epoch_lines import EpochLines
from syncbn.training.callbacks.exact_resume import ExactResume
from syncbn.training.callbacks.exchange_record import ExchangeRecord
from syncbn.training.callbacks.finetune import FreezeNorm, GradualUnfreezing, TrainOnly
from syncbn.training.callbacks.loader_watch import LoaderWatch
from syncbn.training.callbacks.momentum_schedule import MomentumSchedule
from syncbn.training.callbacks.nan_policy import NanPolicy, NonFiniteLoss
from syncbn.training.callbacks.norm_l1 import NormL1
from syncbn.training.callbacks.norm_monitor import NormMonitor
from syncbn.training.callbacks.norm_profiler import NormProfiler
from syncbn.training.callbacks.norm_statistics import NormStatisticsRecorder
from syncbn.training.callbacks.plots import Plots
from syncbn.training.callbacks.preemption import Preemption
from syncbn.training.callbacks.ranks_agree import RanksAgree, RanksDisagree
from syncbn.training.callbacks.recalibrate_norm import RecalibrateNorm
from syncbn.training.callbacks.sample_grids import SampleGrids
from syncbn.training.callbacks.sync_group import SyncGroup
from syncbn.training.callbacks.wandb_media import WandbMedia
from syncbn.training.callbacks.watchdog import Watchdog
from syncbn.training.checkpoint import AtomicCheckpointIO
from syncbn.training.plugin import SyncBatchNormPlugin
from syncbn.training.schedule import cosine_with_warmup
from syncbn.training.strategy import ddp
from syncbn.training.tasks.classification import ClassificationTask
from syncbn.training.tasks.gan import GANTask
from syncbn.training.tasks.segmentation import SegmentationTask
from syncbn.training.unequal import UnequalBatches

__all__ = [
    "AtomicCheckpointIO",
    "ClassificationTask",
    "EpochLines",
    "ExactResume",
    "ExchangeRecord",
    "FreezeNorm",
    "GANTask",
    "GradualUnfreezing",
    "LoaderWatch",
    "MomentumSchedule",
    "NanPolicy",
    "NonFiniteLoss",
    "NormL1",
    "NormMonitor",
    "NormProfiler",
    "NormStatisticsRecorder",
    "Plots",
    "Preemption",
    "RanksAgree",
    "RanksDisagree",
    "RecalibrateNorm",
    "SampleGrids",
    "SegmentationTask",
    "SyncBatchNormPlugin",
    "SyncGroup",
    "TrainOnly",
    "UnequalBatches",
    "WandbMedia",
    "Watchdog",
    "cosine_with_warmup",
    "ddp",
]
