"""How a run's ranks sum, in its folder and in its checkpoints."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning_utilities.core.rank_zero import rank_zero_warn

from syncbn.norm.core.exchange import USED

FILENAME = "exchange.csv"
_KEY = "exchange"


class ExchangeRecord(L.Callback):
    """Records the exchange that norms sum over ranks by, and says so when a resumed run has another.

    One adds in the order of the ranks, the other along a ring: on three ranks or more the last bits of a sum may
    differ, and with them those of a resumed run. `exchange.csv` in the run folder has a row for each start, of its step
    and its exchange. Nothing is recorded where nothing is summed, as on one rank.
    """

    def __init__(self) -> None:
        self._before: str | None = None
        self._recorded = False

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what the run summed by."""
        self._before = checkpoint.get(_KEY)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at this fit alone."""
        USED.clear()
        self._recorded = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        """Write what the first batch was summed by, and compare."""
        if self._recorded or not USED:
            return
        self._recorded = True
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir, FILENAME)
            path.parent.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            with path.open("a") as file:
                file.write("step,exchange\n" * new + f"{trainer.global_step},{_name()}\n")
        if self._before not in (None, _name()):
            rank_zero_warn(
                f"ranks sum by {_name()} here, and by {self._before} before the checkpoint: on three ranks or more the "
                "last bits may differ from those of a run that goes on as it began"
            )

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep it in the checkpoint."""
        checkpoint[_KEY] = _name() or self._before


def _name() -> str | None:
    """The exchange, or both where groups have different ones."""
    return " and ".join(sorted(USED)) or None
