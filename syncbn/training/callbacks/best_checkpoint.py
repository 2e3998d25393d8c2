"""The best checkpoint of a run, under one name for every `save_top_k`."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
from torch import Tensor

from syncbn.training.callbacks.run_checkpoint import RunCheckpoint
from syncbn.training.checkpoint import give_name


class BestCheckpoint(RunCheckpoint):
    """Lightning's `ModelCheckpoint`, whose best file is `best.ckpt` in its folder for any `save_top_k`.

    With `save_top_k=1` that is the only file. With another number, and with placeholders in `filename`, each file has
    its own name, such as `best-epoch4-step170.ckpt`, and `best.ckpt` is a second name of the best of them; with a
    single name Lightning would write all of them to one file. The arguments are those of `ModelCheckpoint`.
    """

    @property
    def _has_names(self) -> bool:
        return self.save_top_k not in (0, 1) or "{" in (self.filename or "{epoch}")

    def format_checkpoint_name(
        self, metrics: dict[str, Tensor], filename: str | None = None, ver: int | None = None, *prefix: Any
    ) -> str:
        """Path of a checkpoint; Lightning has a prefix since 2.6."""
        filename = filename or self.filename
        if filename is not None and "{" not in filename and self._has_names:
            marks = ("{epoch}", "{step}") if self.auto_insert_metric_name else ("epoch{epoch}", "step{step}")
            filename = "-".join((filename, *marks))
        return super().format_checkpoint_name(metrics, filename, ver, *prefix)

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        best = Path(self.best_model_path)
        if self._has_names and trainer.is_global_zero and self.dirpath is not None and best.is_file():
            give_name(best, Path(self.dirpath, f"best{self.FILE_EXTENSION}"))
