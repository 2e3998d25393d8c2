"""Checkpoint callback for run folders that may be copied, moved and renamed."""

from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint` with file names relative to its folder in its state.

    Lightning stores absolute paths, and loses the best score if the folder's path has changed. Here a run that resumes
    in a folder takes over the scores of its files; one that resumes from another run's checkpoint starts without
    scores. Subclasses have the state key of `ModelCheckpoint`, so that older checkpoints work, too. The arguments are
    those of `ModelCheckpoint`.
    """

    @wraps(ModelCheckpoint.__init__)  # type: ignore[misc]  # a constructor: for those who read its arguments
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        new = "save_on_exception"  # of Lightning 2.6
        if new not in signature(ModelCheckpoint).parameters and kwargs.pop(new, False):
            raise MisconfigurationException(f"{new}=True needs Lightning 2.6")
        super().__init__(*args, **kwargs)

    @property
    def state_key(self) -> str:
        """As that of the class it derives from."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record whether the checkpoint is in this folder."""
        loaded = Path(trainer.ckpt_path or "")
        self._of_this_folder = loaded.parent.resolve() == Path(self.dirpath or "").resolve()

    def state_dict(self) -> dict[str, Any]:
        """Scores, file names, and whether the save of an earlier step waits for a validation."""
        state = super().state_dict() | {"waits": getattr(self, "_defer_save_until_validation", False)}
        best_k = {Path(path).name: score for path, score in state["best_k_models"].items()}
        return state | {key: Path(state[key]).name for key in _PATHS} | {"best_k_models": best_k, "dirpath": ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores of this folder's files."""
        if not self._of_this_folder:
            return
        here = {key: self._placed(state_dict.get(key, "")) for key in _PATHS}
        best_k = {self._placed(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict(state_dict | here | {"best_k_models": best_k, "dirpath": self.dirpath})
        self._defer_save_until_validation = state_dict.get("waits", False)
        self.current_score = state_dict.get("current_score")  # which Lightning saves, and doesn't restore

    def _placed(self, path: str) -> str:
        """A path as this callback writes it."""
        return str(Path(self.dirpath or "", Path(path).name)) if path else ""
