"""Handling of a loss that isn't finite."""

from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import MixedPrecision
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from syncbn.launch.faults import Fault
from syncbn.training.callbacks.exact_resume import load_layers
from syncbn.training.checkpoint import load_checkpoint
from syncbn.training.connected import connected
from syncbn.training.host_group import host_group
from syncbn.training.undo import Undo

Policy = Literal["stop", "skip", "rewind"]
_NEVER = 2**62


class NonFiniteLoss(Fault, FloatingPointError):
    """The loss wasn't finite, and the run stops."""


class NanPolicy(L.Callback):
    """Handles, jointly on all ranks, a step in which any rank's loss is NaN or infinite.

    - "stop": all ranks raise `NonFiniteLoss`, before anything affected by such a step is saved.
    - "skip": the step is undone. Parameters, the optimizer's state, running statistics, windows of cross-iteration
      norms and the epoch's metrics are restored to before its batch, or its batches under gradient accumulation. The
      schedule and the step count advance.
    - "rewind": the states of parameters, optimizer and layers are restored from the last checkpoint, or from the start
      if there is none. The run continues with the next batch; batches since the checkpoint aren't repeated. Averages of
      the weights (Lightning's `WeightAveraging`) aren't restored.

    For "skip" and "rewind" the ranks agree before each optimizer step, by one number, for which the host waits for the
    device; non-finite gradients count like a loss, unless a `GradScaler` checks them. For "stop" they agree every
    `log_every_n_steps` steps, before each validation and checkpoint, and at the end of an epoch.

    Args:
        policy: "stop", "skip" or "rewind".
        checkpoint: checkpoint to restore, for "rewind".
        patience: largest number of consecutive steps to skip; one more stops the run.

    Raises:
        ValueError: an unknown policy, a patience below 1, or "rewind" without a checkpoint.
        NonFiniteLoss: in a fit, as above.
    """

    def __init__(self, policy: Policy = "stop", checkpoint: str | Path | None = None, patience: int = 10) -> None:
        if policy not in get_args(Policy):
            raise ValueError(f"nan_policy must be one of {', '.join(map(repr, get_args(Policy)))}, got {policy!r}")
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        if policy == "rewind" and checkpoint is None:
            raise ValueError("nan_policy='rewind' needs the checkpoint to go back to, got checkpoint=None")
        self.policy = policy
        self.checkpoint = Path(checkpoint or "")
        self.patience = patience
        self._in_a_row = 0
        self._first: Tensor | None = None
        self._undo: Undo | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Store the initial state to rewind to."""
        self._first = self._undo = None
        if self.policy == "rewind" and not self._is_there(trainer, self.checkpoint):
            trainer.save_checkpoint(_start_beside(self.checkpoint), weights_only=False)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Store the state that the batch will change, unless it accumulates gradients."""
        if self.policy != "stop" and (self._undo is None or not pl_module.automatic_optimization):
            self._undo = Undo(pl_module)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Record the batch if this rank's loss isn't finite. The host doesn't wait."""
        place = trainer.fit_loop.batch_idx * trainer.world_size + trainer.global_rank
        here = torch.where(loss.detach().isfinite().all(), _NEVER, place)
        self._first = here if self._first is None else torch.minimum(self._first, here)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Skip, rewind or stop, if the loss of a rank wasn't finite."""
        if self.policy == "stop":
            if trainer.global_step % max(1, connected(trainer).log_every_n_steps) == 0:
                self._stop_if_found(trainer)
            return
        self._look_at_gradients(trainer, optimizer)
        found = self._found(trainer)
        self._in_a_row = self._in_a_row + 1 if found else 0
        if found:
            if self._in_a_row > self.patience:
                raise NonFiniteLoss(f"{found}, and neither was it in the {self.patience} steps before; {_ADVICE}")
            self._leave_out(trainer, pl_module, optimizer, found)
        self._undo = None if pl_module.automatic_optimization else Undo(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check before the weights are evaluated."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_found(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check before the epoch's metrics are evaluated."""
        self._stop_if_found(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check before the weights overwrite good ones."""
        self._stop_if_found(trainer)

    def _stop_if_found(self, trainer: L.Trainer) -> None:
        if self.policy == "stop" and (found := self._found(trainer)):
            raise NonFiniteLoss(f"{found}, and the run ends (nan_policy=stop); checkpoints are of before. {_ADVICE}")

    def _found(self, trainer: L.Trainer) -> str | None:
        """Describe the first batch and rank since the last call with a non-finite loss; the same on all ranks."""
        first = torch.tensor(_NEVER if self._first is None else int(self._first))
        self._first = None
        if (group := host_group()) is not None:
            dist.all_reduce(first, dist.ReduceOp.MIN, group=group)
        if int(first) >= _NEVER:
            return None
        batch, rank = divmod(int(first), trainer.world_size)
        on_rank = f" on rank {rank}" if trainer.world_size > 1 else ""
        return f"the loss isn't finite{on_rank} in epoch {trainer.current_epoch + 1} at batch {batch + 1}"

    def _look_at_gradients(self, trainer: L.Trainer, optimizer: Optimizer) -> None:
        scaled = isinstance(trainer.precision_plugin, MixedPrecision) and trainer.precision_plugin.scaler is not None
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if grads and not scaled:
            self.on_before_backward(trainer, trainer.lightning_module, get_total_norm(grads))

    def _leave_out(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer, found: str) -> None:
        optimizer.zero_grad(set_to_none=True)  # optimizers skip parameters without gradients
        assert self._undo is not None
        self._undo.metrics()
        if self.policy == "skip":
            self._undo.layers()
            rank_zero_warn(f"{found}: its step is left out (nan_policy=skip)")
            return
        path = self.checkpoint if self._is_there(trainer, self.checkpoint) else _start_beside(self.checkpoint)
        checkpoint = load_checkpoint(path)
        module.load_state_dict(checkpoint.get("current_model_state", checkpoint["state_dict"]))
        for loaded, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
            settings = [{k: v for k, v in group.items() if k != "params"} for group in loaded.param_groups]
            loaded.load_state_dict(state)
            for group, setting in zip(loaded.param_groups, settings, strict=True):
                group.update(setting)  # the schedule advances
        if len(states := checkpoint.get("ranks", [])) == trainer.world_size:
            load_layers(module, states[trainer.global_rank]["layers"])
        where = f"{path.name}, step {checkpoint['global_step']}"
        rank_zero_warn(f"{found}: back to the weights of {where}, and on with the next batch (nan_policy=rewind)")

    def _is_there(self, trainer: L.Trainer, path: Path) -> bool:
        return bool(trainer.strategy.broadcast(path.exists()))


def _start_beside(checkpoint: Path) -> Path:
    return checkpoint.with_name("start.ckpt")


_ADVICE = "Lower the learning rate, look at the data, or leave such steps out: resume=auto nan_policy=skip"
