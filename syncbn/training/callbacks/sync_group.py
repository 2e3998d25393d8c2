"""Synchronization of norms over groups of ranks."""

import lightning.pytorch as L

from syncbn.norm.core.groups import check_size, set_process_group, sync_group
from syncbn.norm.core.shared_options import Size


class SyncGroup(L.Callback):
    """Makes every synchronizing norm use this rank's group of `syncbn.sync_group` during a fit.

    Groups can only be created after the ranks have met, and so after the network is built. They are removed after the
    fit, so that the module can be pickled.

    Args:
        size: "node", a number of ranks, or "world".

    Raises:
        ValueError: at the start of the fit, a number that doesn't divide the trainer's ranks.
    """

    def __init__(self, size: Size = "node") -> None:
        self.size = size

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Create the groups, before DDP wraps the module."""
        if stage != "fit":
            return
        check_size(self.size, trainer.world_size)
        if trainer.world_size > 1:
            set_process_group(pl_module, sync_group(self.size))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the groups."""
        if stage == "fit":
            set_process_group(pl_module, None)
