"""Graceful stop at a batch that all ranks agree on and from which a run can resume."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from syncbn.launch import stop
from syncbn.launch.stop import Stopped
from syncbn.training.host_group import host_group


class Preemption(Checkpoint):
    """On SIGTERM, SIGUSR1 or Ctrl-C, stops all ranks at the same batch, saves a checkpoint, and raises `Stopped`.

    A signal is recorded (`syncbn.launch.stop`). At the end of a batch the ranks start an all-reduce of one number, the
    maximum of the recorded signals. It runs during the next batch and is read at its end, so no rank waits for it, and
    a run of several ranks stops one batch later. The checkpoint is the last action of its batch or epoch: this class is
    a `Checkpoint`, which Lightning calls after all other callbacks. A run stops

    - after a batch with an optimizer step, if nothing else, such as a validation, precedes the next batch;
    - in a validation, which the resumed run repeats from its start; but not while the weights are replaced by their
      average (Lightning's `WeightAveraging`), nor after any rank has no validation batch left;
    - after an epoch;
    - in a test, without saving.

    Lightning's own handling is disabled: its SIGTERM handler broadcasts at any point of the training, which can hang,
    and its broadcast before each batch would wait for the GPU.

    Args:
        path: path of the checkpoint to write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._owns_signals = False
        self._ballot: tuple[dist.Work, torch.Tensor] | None = None
        self._signum = 0  # agreed by all ranks, and the checkpoint is written
        self._validation_batches = 0.0
        self._saves_in_validation = False
        self._resumes_in_validation = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Install our signal handlers, and disable Lightning's."""
        self._owns_signals = stop.install(deferred=True) or self._owns_signals
        stop.defer(forward=getattr(trainer.strategy.launcher, "kill", None))
        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        self._give_back()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the previous signal handlers where Lightning doesn't tear down."""
        self._give_back()

    def _give_back(self) -> None:
        if self._owns_signals:
            stop.restore()
            self._owns_signals = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count a repeated validation only once."""
        if self._resumes_in_validation:
            total = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
            total.ready, total.started = total.completed, total.completed  # type: ignore[attr-defined]
            self._resumes_in_validation = False

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop here, once everything of the previous batch is logged."""
        self._leave(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save if a rank was asked to stop and another batch is next."""
        loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if loop._is_training_done or loop._should_accumulate() or loop._should_check_val_fx(fetcher):
            return
        if signum := self._agreed():
            self._save(trainer, signum)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Determine the number of validation batches that all ranks have."""
        self._leave(trainer)
        self._validation_batches = self._of_all(float(sum(trainer.num_val_batches)), dist.ReduceOp.MIN)
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, WeightAveraging) for callback in callbacks):
            self._validation_batches = 0

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save and stop if a rank was asked to stop."""
        self._validation_batches -= 1
        if self._validation_batches < 0 or not (signum := self._agreed()):
            return
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._saves_in_validation = True
            self._save(trainer, signum)
        self._signum = signum
        self._leave(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if a rank was asked to stop."""
        if signum := self._agreed():
            self._save(trainer, signum)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop here, once everything of the previous epoch is logged."""
        self._leave(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if a rank was asked to stop since the training ended."""
        self._signum = int(self._of_all(stop.requested(), dist.ReduceOp.MAX))
        self._leave(trainer)

    def on_test_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop if this rank was asked to; nothing is saved, so ranks needn't be at the same batch."""
        self._signum = stop.requested()
        self._leave(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Whether the checkpoint was written in a validation."""
        return {"in_validation": self._saves_in_validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore whether the checkpoint was written in a validation."""
        self._resumes_in_validation = state_dict["in_validation"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save an interrupted validation as one that has just started."""
        if not self._saves_in_validation:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        before = progress["total"]["completed"] - progress["current"]["completed"]
        progress["total"] = {"ready": before + 1, "started": before + 1, "processed": before, "completed": before}
        progress["current"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        progress["is_last_batch"] = False

    def _agreed(self) -> int:
        """Largest signal recorded by any rank at the previous call; on one rank, the current one."""
        if (group := host_group()) is None:
            return stop.requested()
        signum = 0
        if self._ballot is not None:
            work, ballot = self._ballot
            work.wait()
            signum, self._ballot = int(ballot), None
        if not signum:
            ballot = torch.tensor(stop.requested())
            work = dist.all_reduce(ballot, dist.ReduceOp.MAX, group=group, async_op=True)
            assert work is not None
            self._ballot = work, ballot
        return signum

    def _of_all(self, value: float, op: Any) -> float:
        """Reduce a number over ranks, and wait for it."""
        tensor = torch.tensor(float(value))
        if (group := host_group()) is not None:
            dist.all_reduce(tensor, op, group=group)
        return tensor.item()

    def _save(self, trainer: L.Trainer, signum: int) -> None:
        if not self._signum:
            trainer.save_checkpoint(self.path, weights_only=False)
            self._signum = signum

    def _leave(self, trainer: L.Trainer) -> None:
        if self._signum:
            where = f"in epoch {trainer.current_epoch + 1} at step {trainer.global_step}"
            stop.say("in the test" if trainer.testing else where, self._signum)
            raise Stopped(self._signum)


def _nothing() -> None:
    pass
