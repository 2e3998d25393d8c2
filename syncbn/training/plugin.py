"""`Trainer(plugins=[SyncBatchNormPlugin()])`: the norms of any LightningModule synchronized for the time of a fit."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.plugins import LayerSync
from torch import nn

import syncbn


class SyncBatchNormPlugin(LayerSync):
    """Converts the batch norms of the user's LightningModule before DDP wraps it, and reverts them after the fit.

    `Trainer(strategy="ddp", plugins=[SyncBatchNormPlugin()])` stands where `Trainer(sync_batchnorm=True)` would, on
    CPU too. It is `syncbn.convert` and `syncbn.revert`, so parameters, statistics, hooks and checkpoints are kept, and
    after the fit the module has its original classes. A strategy of one device has no ranks to synchronize and does
    not call it.

    Args:
        norm: what the batch norms become, one of `syncbn.available_norms()`.
        include: globs of module names to convert, for example ["net.layer4.*"]; all when None.
        exclude: globs of module names to leave alone.
        options: arguments of the norm, for example `momentum=0.01`.

    Raises:
        ValueError: an unknown norm or option.
    """

    def __init__(
        self,
        norm: str = "sync",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        syncbn.norm_layer(norm, **options)  # a misspelt norm is answered here, not after the data is loaded
        self.norm = norm
        self.include = include
        self.exclude = exclude
        self.options = options

    def apply(self, model: nn.Module) -> nn.Module:
        """The model with its batch norms converted in place."""
        return syncbn.convert(model, self.norm, include=self.include, exclude=self.exclude, **self.options)

    def revert(self, model: nn.Module) -> nn.Module:
        """The model with the classes it had before `apply`."""
        return syncbn.revert(model)

    def __repr__(self) -> str:
        # A `pytorch_lightning.Trainer` doesn't know this class and prints it in "Found invalid type for plugin ...".
        return f"SyncBatchNormPlugin(norm={self.norm!r}), for lightning.pytorch.Trainer, not pytorch_lightning's"
