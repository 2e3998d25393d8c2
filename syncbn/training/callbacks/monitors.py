"""Metrics for checkpoints and early stopping of a LightningModule with unknown metrics."""

from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from syncbn.launch.faults import Fault
from syncbn.norm.core.options import suggest
from syncbn.training.callbacks.best_checkpoint import BestCheckpoint
from syncbn.training.callbacks.found import callbacks_of
from syncbn.training.checkpoint import load_checkpoint
from syncbn.training.connected import connected

DEFAULT = "val/loss"


class NoSuchMetric(Fault, ValueError):
    """A callback monitors a metric that the module doesn't log."""


class Monitors(L.Callback):
    """Compares the metrics that callbacks monitor with those that a validation batch logs, before the training.

    Lightning reports a missing metric only after the first epoch. Here the trainer's sanity check shows the logged
    metrics (`Trainer(num_sanity_val_steps=1)`). A callback with the default monitor "val/loss" uses the one loss that
    is logged. If there is none, or several, the best checkpoint is the last one, and training doesn't stop early. The
    decision is saved in the checkpoint, since a resumed run has no sanity check.

    Args:
        callbacks: callbacks by their names in the config.

    Raises:
        NoSuchMetric: any other metric that the validation doesn't log; training metrics can't be known then.
    """

    def __init__(self, callbacks: Mapping[str, L.Callback]) -> None:
        self.callbacks = callbacks
        self.decided: dict[str, str | None] = {}

    def take_up(self, decided: Mapping[str, str | None]) -> None:
        """Take over the decisions of the resumed run."""
        for name, monitor in decided.items():
            if name in self.callbacks:
                self._replace(name, monitor)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Decide if there is no validation; a test in a separate process decides as its checkpoint."""
        self._give_way(trainer)
        if stage == "fit" and not trainer.enable_validation:
            self._decide(trainer, pl_module, ())
        elif stage != "fit" and not self.decided:
            best = getattr(trainer.checkpoint_callback, "best_model_path", "")
            callbacks = load_checkpoint(best).get("callbacks", {}) if best else {}
            self.take_up(callbacks.get(type(self).__qualname__, {}).get("decided", {}))

    def _give_way(self, trainer: L.Trainer) -> None:
        """Let a module's own `ModelCheckpoint` replace ours, as Lightning does with one of the same class."""
        named = self.callbacks.values()
        if any(callback not in named for callback in callbacks_of(trainer, ModelCheckpoint)):
            kept = [
                callback for callback in callbacks_of(trainer, L.Callback) if not isinstance(callback, BestCheckpoint)
            ]
            connected(trainer).callbacks = kept

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Decide by the logged metrics."""
        self._decide(trainer, pl_module, trainer.callback_metrics)

    def state_dict(self) -> dict[str, Any]:
        """Decisions, for the checkpoint."""
        return {"decided": self.decided}

    def _decide(self, trainer: L.Trainer, module: L.LightningModule, logged: Iterable[str]) -> None:
        names = sorted(logged)
        losses = [name for name in names if "loss" in name.lower()]
        replaced = []
        for name, callback in self.callbacks.items():
            monitor = getattr(callback, "monitor", None)
            replaced_by_the_modules_own = callback not in callbacks_of(trainer, L.Callback)
            if monitor is None or monitor in names or name in self.decided or replaced_by_the_modules_own:
                continue
            if monitor == DEFAULT:
                self._replace(name, losses[0] if len(losses) == 1 else None)
                replaced.append(name)
            elif names and not monitor.startswith("train"):
                raise NoSuchMetric(
                    f"callbacks.{name}.monitor={monitor}: the validation of {type(module).__name__} logs no such "
                    f"metric; {suggest(monitor, names)}"
                )
        if replaced and trainer.is_global_zero:
            by = f"go by {losses[0]}" if len(losses) == 1 else "have no metric: the best checkpoint is the last one"
            shown = ", ".join(f"callbacks.{name}" for name in replaced)
            print(f"no {DEFAULT}:   {type(module).__name__} doesn't log it; {shown} {by}", flush=True)

    def _replace(self, name: str, monitor: str | None) -> None:
        self.decided[name] = monitor
        callback = self.callbacks[name]
        if isinstance(callback, EarlyStopping) and monitor is None:
            callback.strict = callback.verbose = False  # ignores a missing metric
        elif isinstance(callback, EarlyStopping | ModelCheckpoint):
            callback.monitor = monitor
