"""What `self.log` has gathered since the epoch began: Lightning keeps it in no checkpoint, nor in public."""

from dataclasses import fields
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torchmetrics import Metric

_PLAIN = tuple(field.name for field in fields(_Metadata) if field.name not in ("reduce_fx", "_sync"))


def save(trainer: L.Trainer) -> list[dict[str, Any]]:
    """A dict of plain values and tensors for each logged name of the training epoch, in order.

    A logged `Metric` is there by the name of its attribute only: its own state is its module's business. What is
    reduced over a group of the user's has no name that a later process would know, and is left out.
    """
    return [
        {
            "key": key,
            "meta": {name: getattr(result.meta, name) for name in _PLAIN},
            "reduce": result.meta.reduce_fx.__name__,
            "sync_dist": result.meta.sync.should,
            "rank_zero_only": result.meta.sync.rank_zero_only,
            "state": {name: value.detach().cpu() for name, value in _sums(result).items()},
        }
        for key, result in trainer.fit_loop.epoch_loop._results.items()
        if result.meta.sync.group is None and not result.has_reset
    ]


def load(trainer: L.Trainer, saved: list[dict[str, Any]]) -> None:
    """Let the training epoch go on with what `save` returned."""
    module = trainer.lightning_module
    if saved:
        trainer._logger_connector._first_loop_iter = True  # the next batch isn't the first, at which sums begin anew
    for entry in saved:
        meta = _Metadata(**entry["meta"], reduce_fx=entry["reduce"])
        meta.sync = _Sync(
            _should=entry["sync_dist"], fn=trainer.strategy.reduce, rank_zero_only=entry["rank_zero_only"]
        )
        result = _ResultMetric(meta, is_tensor=bool(entry["state"]))
        for name, value in entry["state"].items():
            setattr(result, name, value)
        if not result.is_tensor:
            metric = module.get_submodule(str(meta.metric_attribute))
            assert isinstance(metric, Metric)
            result.value = metric
        result._update_count = 1
        trainer.fit_loop.epoch_loop._results[entry["key"]] = result.to(module.device)


def _sums(result: _ResultMetric) -> dict[str, Any]:
    return result.metric_state if result.is_tensor else {}
