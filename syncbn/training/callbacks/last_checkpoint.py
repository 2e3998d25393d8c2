"""The checkpoint that a run goes on from."""

from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which a LightningModule's own checkpoint callbacks don't take the place of.

    Those that `configure_callbacks` returns replace the trainer's of the same class: the run would lose the checkpoint
    that it goes on from. The arguments are those of `ModelCheckpoint`.
    """

    @property
    def state_key(self) -> str:
        """As that of the class it derives from, under which older checkpoints have its state."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)
