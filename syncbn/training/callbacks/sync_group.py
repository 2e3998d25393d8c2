"""Synchronize norms over fewer ranks than all."""

import lightning.pytorch as L

from syncbn.norm.core.groups import check_size, set_process_group, sync_group
from syncbn.norm.core.shared_options import Size


class SyncGroup(L.Callback):
    """For the time of a fit, every norm that synchronizes does so over this rank's group of `syncbn.sync_group`.

    Groups can only be made once the ranks have met, which is after the network is built. After the fit the norms have
    no group, so that the module can be pickled.

    Args:
        size: "node", a number of ranks, or "world".

    Raises:
        ValueError: when the fit starts, a number that doesn't divide the trainer's ranks.
    """

    def __init__(self, size: Size = "node") -> None:
        self.size = size

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the groups, before DDP wraps the module."""
        if stage != "fit":
            return
        check_size(self.size, trainer.world_size)
        if trainer.world_size > 1:
            set_process_group(pl_module, sync_group(self.size))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the groups away."""
        if stage == "fit":
            set_process_group(pl_module, None)
