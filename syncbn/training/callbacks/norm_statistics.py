"""Record of each norm's running statistics during training, as a table in the run folder."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from syncbn.launch.files import replace_text
from syncbn.norm.core.arguments import check_arguments
from syncbn.training.callbacks.checks_folder import make_folder
from syncbn.training.callbacks.norm_statistics_options import NormStatisticsOptions as Options

FILENAME = "norm_statistics.csv"
FIELDS = ("step", "layer", "mean_mean", "mean_std", "var_mean", "var_std")


class NormStatisticsRecorder(L.Callback):
    """Writes, every n steps, mean and deviation over channels of each norm layer's running mean and variance.

    One row per step and layer in `norm_statistics.csv`: step, layer, mean_mean, mean_std, var_mean, var_std. Rank 0
    writes its own statistics, which are equal on all ranks for synchronized layers. Layers without running statistics,
    such as group norm, have no row. A resumed run continues in the same file, from the step it resumes at.

    Args:
        every_n_steps: optimizer steps between rows; the last step is always recorded.
        folder: folder to write to; the trainer's `default_root_dir` when None.

    Raises:
        ValueError: every_n_steps below 1.
    """

    def __init__(self, every_n_steps: int = Options.every_n_steps, folder: str | Path | None = Options.folder) -> None:
        check_arguments(Options, locals())
        self.every_n_steps = every_n_steps
        self.folder = folder
        self._last_step = -1
        self._pending: list[tuple[int, list[str], Tensor]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the folder."""
        make_folder(trainer, self.folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open a new table, or cut the old one at the step that a resumed run starts at."""
        if not trainer.is_global_zero:
            return
        self.path = Path(self.folder or trainer.default_root_dir) / FILENAME
        start = trainer.global_step
        kept = [row for row in read_statistics(self.path) if start > 0 and self._stays(int(row["step"]), start)]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, FIELDS)
        writer.writeheader()
        writer.writerows(kept)
        replace_text(self.path, text.getvalue())
        self._last_step = start if any(int(row["step"]) == start for row in kept) else -1
        if start == 0:
            self._record(trainer, pl_module)

    def _stays(self, step: int, start: int) -> bool:
        """Whether a row stays when a run goes on: not the last of an earlier end, which is none any more."""
        return step < start or (step == start and step % self.every_n_steps == 0)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the rows that a run resumed from this checkpoint won't record again."""
        self._write()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        """Record at every n-th optimizer step."""
        if trainer.global_step % self.every_n_steps == 0:
            self._record(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch's rows."""
        self._write()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record and write the last step."""
        self._record(trainer, pl_module)
        self._write()

    def _record(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        layers = list(running_statistics(pl_module))
        if layers:
            # Numbers stay on the device until the epoch ends: reading them here would stall a GPU.
            rows = torch.stack([torch.stack([*_moments(mean), *_moments(var)]) for _, mean, var in layers])
            self._pending.append((trainer.global_step, [name for name, _, _ in layers], rows))

    def _write(self) -> None:
        if not self._pending:
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            for step, names, rows in self._pending:
                writer.writerows([step, name, *row] for name, row in zip(names, rows.tolist(), strict=True))
        self._pending.clear()


def running_statistics(module: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, running mean (C) and running variance (C) of every layer that has both, in network order."""
    for name, layer in module.named_modules():
        mean, var = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            yield name, mean.detach(), var.detach()


def read_statistics(path: Path) -> list[dict[str, str]]:
    """Read the rows of a recorded table, without one that a full disk has cut short; empty if there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in (*row, *row.values()) and row["step"].isdigit()]


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(), values.std(unbiased=False)
