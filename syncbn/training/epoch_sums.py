"""Values gathered by `self.log` in the current epoch, which Lightning's checkpoints lack."""

from dataclasses import fields
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torchmetrics import Metric

_PLAIN = tuple(field.name for field in fields(_Metadata) if field.name not in ("reduce_fx", "_sync"))


def save(trainer: L.Trainer) -> list[dict[str, Any]]:
    """Save a dict of plain values and tensors for each logged name of the training epoch, in order.

    A logged `Metric` is saved only by the name of its attribute: its state belongs to its module. Values reduced over a
    user's group are left out, since a later process couldn't identify the group.
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
    """Restore the result of `save` to the training epoch."""
    module = trainer.lightning_module
    if saved:
        trainer._logger_connector._first_loop_iter = True  # True would reset the sums at the next batch
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
