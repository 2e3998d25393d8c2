"""`Trainer(plugins=[SyncBatchNormPlugin()])`: synchronizes the norms of any LightningModule during a fit."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.plugins import LayerSync
from torch import nn

from syncbn.norm import convert, norm_layer, revert
from syncbn.norm.core import groups
from syncbn.norm.core.shared_options import Size


class SyncBatchNormPlugin(LayerSync):
    """Converts the batch norms of the user's LightningModule before DDP wraps it, and reverts them after the fit.

    `Trainer(strategy="ddp", plugins=[SyncBatchNormPlugin()])` replaces `Trainer(sync_batchnorm=True)`, also on CPU. It
    uses `syncbn.convert` and `syncbn.revert`, so parameters, statistics, hooks and checkpoints are kept, and after the
    fit the module has its original classes. Single-device strategies don't call it.

    Args:
        norm: norm to convert to, one of `syncbn.available_norms()`.
        include: globs of module names to convert, for example ["net.layer4.*"]; all when None.
        exclude: globs of module names not to convert.
        sync_group: ranks that synchronize with each other: "node", a number of ranks, or "world" for all; see
            `syncbn.sync_group`.
        options: arguments of the norm, for example `momentum=0.01`.

    Raises:
        ValueError: an unknown norm or option; groups for a norm that doesn't synchronize; at the start of the fit, a
            number that doesn't divide the ranks.
    """

    def __init__(
        self,
        norm: str = "sync",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        sync_group: Size = "world",
        **options: Any,
    ) -> None:
        group = {} if sync_group == "world" else {"process_group": None}
        norm_layer(norm, **options, **group)  # report a misspelt norm now instead of after loading the data
        self.norm = norm
        self.include = include
        self.exclude = exclude
        self.sync_group = sync_group
        self.options = options

    def apply(self, model: nn.Module) -> nn.Module:
        """Convert the model's batch norms in place."""
        group = groups.sync_group(self.sync_group)
        return convert(
            model, self.norm, include=self.include, exclude=self.exclude, process_group=group, **self.options
        )

    def revert(self, model: nn.Module) -> nn.Module:
        """Restore the classes from before `apply`."""
        return revert(model)

    def __repr__(self) -> str:
        # A `pytorch_lightning.Trainer` doesn't know this class and prints it in "Found invalid type for plugin ...".
        return f"SyncBatchNormPlugin(norm={self.norm!r}), for lightning.pytorch.Trainer, not pytorch_lightning's"
