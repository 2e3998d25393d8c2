"""Graceful end at a batch that all ranks agree on and from which a run can resume."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint

from syncbn.launch import stop
from syncbn.launch.stop import Stopped
from syncbn.training.callbacks.found import averages_weights, callbacks_of
from syncbn.training.callbacks.owed_validation import OwedValidation, complete_batch, start_validation_anew
from syncbn.training.checkpoint import AtomicCheckpointIO, load_checkpoint
from syncbn.training.host_group import host_group


class Preemption(Checkpoint):
    """On a signal to stop, ends all ranks at the same batch, saves a checkpoint, and raises `Stopped`.

    SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and Ctrl-C are recorded (`syncbn.launch.stop`). At the end of a batch the ranks
    start an all-reduce of one number, the maximum of the recorded signals. It runs during the next batch and is read at
    its end, so no rank waits for it, and a run of several ranks stops one batch later. The checkpoint is the last
    action of its batch or epoch: this class is a `Checkpoint`, which Lightning calls after all other callbacks. A run
    stops

    - after a batch with an optimizer step, if nothing else, such as a validation, precedes the next batch;
    - in a validation, which the resumed run repeats from its start; but not while the weights are replaced by their
      average (Lightning's `WeightAveraging`), nor after any rank has no validation batch left;
    - after an epoch;
    - in a test, without saving.

    A run whose steps or time are over ends at the same places, with the same checkpoint, so that an extended run
    resumes in the middle of the epoch. It then validates, ends its epoch, and is tested as usual. The same holds if
    another callback ends it in the middle of an epoch (`trainer.should_stop`).

    Lightning's own handling is disabled: its SIGTERM handler broadcasts at any point of the training, which can hang,
    and its broadcast before each batch would wait for the GPU.

    Args:
        path: path of the checkpoint to write.
        max_time_s: seconds after which the training ends, for this start only, by any rank's clock.
    """

    def __init__(self, path: str | Path, max_time_s: float | None = None) -> None:
        self.path = Path(path)
        self.max_time_s = max_time_s
        self.time_is_over = False
        self._started = 0.0
        self.cuts_epoch = False
        self._saved_at = -1
        self._owns_signals = False
        self._ballot: tuple[dist.Work, torch.Tensor] | None = None
        self._signum = 0  # agreed by all ranks, and the checkpoint is written
        self._validation_batches = 0.0
        self._saves_in_validation = False
        self._precedes_validation = False  # within a batch
        self._resumes_in_validation = False
        self._owes = False  # the validation after the last step
        self._owed = OwedValidation()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Install our signal handlers, and disable Lightning's."""
        self._owns_signals = stop.install(deferred=True) or self._owns_signals
        stop.defer(forward=getattr(trainer.strategy.launcher, "kill", None))
        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        # A run limited only by steps continues like any other: Lightning would end its last epoch twice.
        trainer.fit_loop._iteration_based_training = _never  # type: ignore[method-assign]
        self._started = time.monotonic()

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

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the last validation, if it is owed."""
        self._owed.begin(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End a run that had stopped early already, and count a repeated validation only once."""
        if any(map(_has_stopped, callbacks_of(trainer, EarlyStopping))):
            trainer.should_stop = True
        if self._owed.is_due:
            self.cuts_epoch = not trainer.fit_loop.epoch_loop._num_ready_batches_reached()
            self._saved_at = trainer.global_step
            _validate_after_every_epoch(trainer)
        self._owes = self._owed.is_due
        if self._resumes_in_validation or self._owed.is_due:
            total = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
            total.ready, total.started = total.completed, total.completed  # type: ignore[attr-defined]
            self._resumes_in_validation = False

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop here, once everything of the previous batch is logged."""
        self._leave(trainer)
        self._precedes_validation = self._validates(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save if a rank was asked to stop and the next thing is another batch, or if the training ends here."""
        self._precedes_validation = False  # the other callbacks have saved
        loop = trainer.fit_loop.epoch_loop
        if loop._num_ready_batches_reached() or loop._should_accumulate():
            return
        validates = self._validates(trainer)
        ends = loop._is_training_done or (trainer.should_stop and trainer.fit_loop._can_stop_early)
        if not ends:
            if validates:
                return
            if signum := self._agreed():
                self._save(trainer, signum)
            if not self.time_is_over:
                return
        self.cuts_epoch = True
        _end_training(trainer)
        if not validates:
            self._owes = True
            self._save_place(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if the training ends here, in the middle of an epoch."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._owed.end(trainer)
        self._owes = False
        if trainer.should_stop and not trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self.cuts_epoch = True
            self._save_place(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Determine the number of validation batches that all ranks have."""
        self._leave(trainer)
        self._validation_batches = self._of_all(float(sum(trainer.num_val_batches)), dist.ReduceOp.MIN)
        if averages_weights(trainer):
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
        """Save if a rank was asked to stop, unless a position in the epoch is saved already."""
        signum = self._agreed()
        if self.time_is_over:
            _end_training(trainer)
        if signum and self.cuts_epoch:
            self._signum = signum
        elif signum:
            self._save(trainer, signum)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the result of the final validation to the checkpoint of a cut epoch."""
        self._owes = False
        if self.cuts_epoch and trainer.is_global_zero and self.path.is_file():
            checkpoint = load_checkpoint(self.path)
            checkpoint["callbacks"][self.state_key] = self.state_dict()
            for callback in callbacks_of(trainer, ModelCheckpoint):
                checkpoint["callbacks"][callback.state_key] = callback.state_dict()
            AtomicCheckpointIO().save_checkpoint(checkpoint, self.path)

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
        """Whether the checkpoint was written in a validation, right before one, or before the last one."""
        in_validation = self._saves_in_validation or self._precedes_validation
        return {"in_validation": in_validation, "owes_validation": self._owes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore whether the checkpoint was written in a validation; `on_load_checkpoint` takes up the last one."""
        self._resumes_in_validation = state_dict["in_validation"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Repeat the last validation of a run that was stopped in it, or before."""
        state = checkpoint.get("callbacks", {}).get(self.state_key, {})
        if trainer.state.fn == "fit" and (state.get("in_validation") or state.get("owes_validation")):
            self._owed.take_up(trainer, checkpoint)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save a validation that is interrupted, or that comes next, as one that has just started.

        The latter by a checkpoint every n steps: Lightning takes that validation for done.
        """
        loops = checkpoint["loops"]["fit_loop"]
        progress = loops["epoch_loop.val_loop.batch_progress"]
        if self._saves_in_validation:
            start_validation_anew(progress, progress["total"]["completed"] - progress["current"]["completed"])
        elif self._precedes_validation and complete_batch(loops):
            start_validation_anew(progress, progress["total"]["completed"])

    def _agreed(self) -> int:
        """Largest signal recorded by any rank at the previous call; on one rank, the current one.

        The same reduction tells whether any rank's time is over.
        """
        late = self.max_time_s is not None and time.monotonic() - self._started > self.max_time_s
        vote = 2 * stop.requested() + late
        if (group := host_group()) is not None:
            vote, mine = 0, vote
            if self._ballot is not None:
                work, ballot = self._ballot
                work.wait()
                vote, self._ballot = int(ballot), None
            if not vote:
                ballot = torch.tensor(mine)
                work = dist.all_reduce(ballot, dist.ReduceOp.MAX, group=group, async_op=True)
                assert work is not None
                self._ballot = work, ballot
        self.time_is_over = self.time_is_over or bool(vote % 2)
        return vote // 2

    def _of_all(self, value: float, op: Any) -> float:
        """Reduce a number over ranks, and wait for it."""
        tensor = torch.tensor(float(value))
        if (group := host_group()) is not None:
            dist.all_reduce(tensor, op, group=group)
        return tensor.item()

    def _save(self, trainer: L.Trainer, signum: int) -> None:
        if not self._signum:
            self._save_place(trainer)
            self._signum = signum

    def _save_place(self, trainer: L.Trainer) -> None:
        if self._saved_at != trainer.global_step:
            self._saved_at = trainer.global_step
            trainer.save_checkpoint(self.path, weights_only=False)

    def _validates(self, trainer: L.Trainer) -> bool:
        """Whether a validation follows this batch, even if the training continues."""
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        ends, trainer.should_stop = trainer.should_stop, False
        due = trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
        trainer.should_stop = ends
        return due

    def _leave(self, trainer: L.Trainer) -> None:
        if self._signum:
            where = f"in epoch {trainer.current_epoch + 1} at step {trainer.global_step}"
            stop.say("in the test" if trainer.testing else where, self._signum)
            raise Stopped(self._signum)


def _end_training(trainer: L.Trainer) -> None:
    """End the training after this batch or epoch, with a validation; a limit overrides a minimum of epochs."""
    trainer.should_stop = True
    trainer.fit_loop.min_epochs = 0
    trainer.fit_loop.epoch_loop.min_steps = None
    _validate_after_every_epoch(trainer)


def _validate_after_every_epoch(trainer: L.Trainer) -> None:
    if trainer.check_val_every_n_epoch is not None:
        trainer.check_val_every_n_epoch = 1


def _has_stopped(callback: EarlyStopping) -> bool:
    """Whether early stopping has ended a resumed run, which Lightning would train for another epoch at each start."""
    threshold, best = callback.stopping_threshold, callback.best_score
    reached = threshold is not None and bool(callback.monitor_op(best, torch.tensor(threshold, device=best.device)))
    return callback.wait_count >= callback.patience or reached


def _nothing() -> None:
    pass


def _never() -> bool:
    return False
