"""Record of the exchange that a run uses, in its folder and its checkpoints."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning_utilities.core.rank_zero import rank_zero_warn

from syncbn.norm.core.exchange import USED
from syncbn.training.callbacks.checks_folder import make_folder

FILENAME = "exchange.csv"
_KEY = "exchange"


class ExchangeRecord(L.Callback):
    """Records the exchange by which norms sum over ranks, and warns when a resumed run has another.

    One exchange adds in rank order, the other along a ring: on three or more ranks the last bits of a sum, and so of a
    resumed run, may differ. `exchange.csv` in the run folder has a row for each start, with its step and exchange.
    Without sums, as on one rank, nothing is recorded.
    """

    def __init__(self) -> None:
        self._before: str | None = None
        self._recorded = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the run folder."""
        make_folder(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the exchange of the checkpoint's run."""
        self._before = checkpoint.get(_KEY)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset for this fit."""
        USED.clear()
        self._recorded = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        """Record the first batch's exchange, and compare."""
        if self._recorded or not USED:
            return
        self._recorded = True
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir, FILENAME)
            new = not path.exists()
            with path.open("a") as file:
                file.write("step,exchange\n" * new + f"{trainer.global_step},{_name()}\n")
        if self._before not in (None, _name()):
            rank_zero_warn(
                f"ranks sum by {_name()} here, and by {self._before} before the checkpoint: on three ranks or more the "
                "last bits may differ from those of a run that goes on as it began"
            )

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the exchange in the checkpoint."""
        checkpoint[_KEY] = _name() or self._before


def _name() -> str | None:
    """Name of the exchange, or of both if groups differ."""
    return " and ".join(sorted(USED)) or None
