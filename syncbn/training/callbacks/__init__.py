"""Callbacks in addition to Lightning's."""

from typing import TYPE_CHECKING

from syncbn.lazy import lazy_names

if TYPE_CHECKING:
    from syncbn.training.callbacks.epoch_lines import EpochLines as EpochLines
    from syncbn.training.callbacks.exact_resume import ExactResume as ExactResume
    from syncbn.training.callbacks.exchange_record import ExchangeRecord as ExchangeRecord
    from syncbn.training.callbacks.loader_watch import LoaderWatch as LoaderWatch
    from syncbn.training.callbacks.norm_statistics import NormStatisticsRecorder as NormStatisticsRecorder
    from syncbn.training.callbacks.plots import Plots as Plots
    from syncbn.training.callbacks.preemption import Preemption as Preemption
    from syncbn.training.callbacks.sample_grids import SampleGrids as SampleGrids
    from syncbn.training.callbacks.wandb_media import WandbMedia as WandbMedia
    from syncbn.training.callbacks.watchdog import Watchdog as Watchdog

_HOMES = {
    "EpochLines": "epoch_lines",
    "ExactResume": "exact_resume",
    "ExchangeRecord": "exchange_record",
    "LoaderWatch": "loader_watch",
    "NormStatisticsRecorder": "norm_statistics",
    "Plots": "plots",
    "Preemption": "preemption",
    "SampleGrids": "sample_grids",
    "WandbMedia": "wandb_media",
    "Watchdog": "watchdog",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
