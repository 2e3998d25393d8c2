"""The last validation of a run whose steps are over, if it was stopped before the end of that validation.

Lightning leaves a run alone that has taken `max_steps`, so that its last epoch would never end: without the validation
nothing is known to be the best, and another network is tested.
"""

from typing import Any

import lightning.pytorch as L


class OwedValidation:
    """Makes a resumed run validate first, and end its epoch.

    Attributes:
        is_due: whether the run begins with it.
    """

    def __init__(self) -> None:
        self.is_due = False

    def take_up(self, trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
        """Make a checkpoint with all steps one of a validation that has just started."""
        loop = trainer.fit_loop.epoch_loop
        if not 0 <= loop.max_steps <= checkpoint["global_step"]:
            return
        loops = checkpoint["loops"]["fit_loop"]
        complete_batch(loops)
        validation = loops["epoch_loop.val_loop.batch_progress"]
        start_validation_anew(validation, validation["total"]["completed"])
        self.is_due = True

    def begin(self, trainer: L.Trainer) -> None:
        """Have Lightning's loops begin although all steps are taken, and find a validation due."""
        if not self.is_due:
            return
        fit_loop: Any = trainer.fit_loop
        kind = type(fit_loop)
        fit_loop.__class__ = type(kind.__name__, (kind,), {"done": False})

        def due(*_: Any) -> bool:  # asked first when the loops have begun
            fit_loop.__class__ = kind
            return True

        fit_loop.epoch_loop._should_check_val_fx = due

    def end(self, trainer: L.Trainer) -> None:
        """Validate as usual from now on."""
        self.is_due = False
        trainer.fit_loop.epoch_loop.__dict__.pop("_should_check_val_fx", None)


def complete_batch(loops: dict[str, Any]) -> bool:
    """Make a batch that is in its last hooks one that is over; returns whether there is one."""
    batches = loops["epoch_loop.batch_progress"]
    found = bool(batches["total"]["completed"] < batches["total"]["processed"])
    for count in ("total", "current"):
        batches[count]["completed"] = batches[count]["processed"]
    return found


def start_validation_anew(progress: dict[str, Any], before: int) -> None:
    """Make the progress of a validation that of one that has just started, after `before` batches of earlier ones."""
    progress["total"] = {"ready": before + 1, "started": before + 1, "processed": before, "completed": before}
    progress["current"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    progress["is_last_batch"] = False
