"""The last checkpoint, from which a run resumes."""

import lightning.pytorch as L

from syncbn.training.callbacks.found import callbacks_of
from syncbn.training.callbacks.preemption import Preemption
from syncbn.training.callbacks.run_checkpoint import RunCheckpoint


class LastCheckpoint(RunCheckpoint):
    """Lightning's `ModelCheckpoint`, but not replaced by a LightningModule's own checkpoint callbacks.

    Callbacks from `configure_callbacks` replace the trainer's of the same class, so the run would lose the checkpoint
    to resume from. The arguments are those of `ModelCheckpoint`.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, unless the epoch was cut: then `Preemption` has saved the position in it."""
        over = trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        if over or not callbacks_of(trainer, Preemption):
            super().on_train_epoch_end(trainer, pl_module)
