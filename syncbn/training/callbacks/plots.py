"""Plots of a finished run, in its folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_warn

from syncbn.training.callbacks import figures, norm_statistics
from syncbn.training.callbacks.checks_folder import make_folder
from syncbn.training.callbacks.plots_options import PlotsOptions as Options


class Plots(L.Callback):
    """Draws plots/{loss,accuracy,norm_statistics,confusion_matrix}.png after fit and test, from the run's records.

    The curves are from the CSV logger's metrics.csv, the norms from the table of `NormStatisticsRecorder`, which must
    come before this callback, and the confusion matrix from `ClassificationTask` after a test. Missing records give no
    plot. Needs matplotlib (`pip install syncbn[train]`).

    Args:
        folder: run folder, with norm_statistics.csv, for `plots/`; the trainer's `default_root_dir` when None.
    """

    def __init__(self, folder: str | Path | None = Options.folder) -> None:
        self.folder = folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the folder."""
        make_folder(trainer, self.folder)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the curves and the norms."""
        if trainer.is_global_zero:
            with _not_worth_a_run():
                self._draw_training(trainer)

    def _draw_training(self, trainer: L.Trainer) -> None:
        self._draw_curves(trainer)
        folder = self._folder(trainer)
        if rows := norm_statistics.read_statistics(folder / norm_statistics.FILENAME):
            figures.draw_norm_statistics(rows, folder / "plots" / "norm_statistics.png")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the confusion matrix, and the curves again with the test's point."""
        if trainer.is_global_zero:
            with _not_worth_a_run():
                self._draw_test(trainer, pl_module)

    def _draw_test(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._draw_curves(trainer)
        counts = getattr(pl_module, "confusion_matrix", None)
        if counts is not None:
            names = getattr(pl_module, "class_names", [str(i) for i in range(len(counts))])
            path = self._folder(trainer) / "plots" / "confusion_matrix.png"
            figures.draw_confusion_matrix(counts, names, path)

    def _draw_curves(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            path = Path(logger.log_dir) / "metrics.csv" if isinstance(logger, CSVLogger) else None
            if path is not None and path.is_file():
                metrics = figures.read_metrics(path)
                plots = self._folder(trainer) / "plots"
                if any(name.endswith("/loss") for name in metrics):
                    figures.draw_loss(metrics, plots / "loss.png")
                if any(name.endswith("/acc") for name in metrics):
                    figures.draw_accuracy(metrics, plots / "accuracy.png")

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(self.folder or trainer.default_root_dir)


@contextmanager
def _not_worth_a_run() -> Iterator[None]:
    """A disk that can't take a picture has the run's checkpoints and metrics by then."""
    try:
        yield
    except OSError as error:
        rank_zero_warn(f"plots/ isn't complete: {error}")
