"""Callbacks that Lightning doesn't have."""

from syncbn.training.callbacks.epoch_lines import EpochLines
from syncbn.training.callbacks.exact_resume import ExactResume
from syncbn.training.callbacks.exchange_record import ExchangeRecord
from syncbn.training.callbacks.loader_watch import LoaderWatch
from syncbn.training.callbacks.norm_statistics import NormStatisticsRecorder
from syncbn.training.callbacks.plots import Plots
from syncbn.training.callbacks.preemption import Preemption
from syncbn.training.callbacks.sample_grids import SampleGrids
from syncbn.training.callbacks.wandb_media import WandbMedia
from syncbn.training.callbacks.watchdog import Watchdog

__all__ = [
    "EpochLines",
    "ExactResume",
    "ExchangeRecord",
    "LoaderWatch",
    "NormStatisticsRecorder",
    "Plots",
    "Preemption",
    "SampleGrids",
    "WandbMedia",
    "Watchdog",
]
