"""The row that loggers get right after a checkpoint: a run that is killed in between owes it."""

from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as L
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.loggers import Logger

from syncbn.training.loggers import RunFolderCSVLogger

KEY = "owed_row"
_MEASURED = "loader/wait_share"  # by a clock: a checkpoint has the same bytes in each run of a seed


def save(trainer: L.Trainer) -> dict[str, Any] | None:
    """Save the step and values that Lightning logs next; None where it has logged all that there is.

    Lightning saves in the last hooks of a batch and of an epoch, and logs what these have gathered afterwards. To be
    called on all ranks, as values are reduced over them.
    """
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
    epochs: Any = trainer.fit_loop.epoch_progress.total
    batches: Any = loop.batch_progress.total
    step = loop._batches_that_stepped
    if epochs.completed < epochs.processed == epochs.started:
        step -= 1  # of the epoch's last batch
    elif not (trainer.training and batches.completed < batches.processed) or not _is_logged(trainer):
        return None
    logged = {name: value for name, value in connector.metrics["log"].items() if name != _MEASURED}
    if not logged:
        return None
    values = convert_tensors_to_scalars(logged)
    return {"step": int(values.pop("step", step)), "values": {"epoch": trainer.current_epoch} | values}


def _is_logged(trainer: L.Trainer) -> bool:
    """Whether this batch's values are logged."""
    between_steps = trainer.fit_loop._should_accumulate() and trainer.lightning_module.automatic_optimization
    return trainer._logger_connector.should_update_logs and not between_steps


def pay(loggers: Iterable[Logger], row: Mapping[str, Any] | None) -> None:
    """Log the result of `save` if metrics.csv lacks it."""
    loggers = list(loggers)
    tables = [logger for logger in loggers if isinstance(logger, RunFolderCSVLogger)]
    if row is None or not tables or any(table.has_row(row["step"], row["values"]) for table in tables):
        return
    for logger in loggers:
        logger.log_metrics(dict(row["values"]), row["step"])
        logger.save()
