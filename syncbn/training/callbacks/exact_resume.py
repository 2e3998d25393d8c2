"""Exact resuming: state that Lightning's checkpoints lack."""

import hashlib
import io
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from syncbn.training import epoch_sums, monitored, owed_row
from syncbn.training.connected import connected
from syncbn.training.host_group import host_group

_KEY = "ranks"


class ExactResume(L.Callback):
    """Adds each rank's state to every checkpoint, so that a resumed run is bitwise equal to an uninterrupted one.

    Lightning saves rank 0's weights, optimizer, schedule, loops and callbacks. This callback adds, for each rank:

    - the states of PyTorch's, NumPy's and Python's random generators, used by dropout;
    - the epoch's metric sums so far, the values gathered by `self.log`, and the last values of monitored scores;
    - buffers and extra state (such as the window of a cross-iteration norm) that differ from rank 0's;

    and once the row that loggers get after the checkpoint (`owed_row`).

    The states of all ranks pass through rank 0's memory. Data must be a function of seed, epoch and position, as with
    `GlobalBatchSampler`. On a different number of ranks, a run resumes with new random numbers and sums.
    """

    def __init__(self) -> None:
        self._loaded: list[dict[str, Any]] | None = None
        self._before_validation: dict[str, Any] = {}
        self._repeats_validation = False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Gather the states of all ranks."""
        epoch = trainer.fit_loop.epoch_progress.total
        in_epoch = epoch.processed < epoch.started  # type: ignore[attr-defined]  # else the sums are obsolete
        here = self._before_validation if self._repeats_validation else _of_this_place(pl_module)
        # Behind a validation Lightning resets its metrics only after the checkpoints; the next would add to them.
        metrics = self._before_validation["metrics"] if trainer.validating else here["metrics"]
        state = {
            "random": here["random"],
            "metrics": metrics if in_epoch else {},
            "logged": epoch_sums.save(trainer) if in_epoch else [],
            "monitored": monitored.save(trainer),
            "layers": _unlike_rank_0(pl_module),
        }
        checkpoint[_KEY] = _gathered(state)
        checkpoint[owed_row.KEY] = owed_row.save(trainer)
        if (batch_size := getattr(connected(trainer).datamodule, "batch_size", None)) is not None:
            checkpoint["global_batch_size"] = batch_size * trainer.world_size

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the states until the training starts."""
        self._loaded = checkpoint.get(_KEY)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore this rank's state, after DDP's broadcast of rank 0's buffers, and after any use of random numbers."""
        states, self._loaded = self._loaded, None
        if states is None:
            return
        if len(states) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint is of {len(states)} rank(s), this run has {trainer.world_size}: it goes on with new "
                "random numbers, and the metrics of the epoch count from here"
            )
            return
        state = states[trainer.global_rank]
        _load_metrics(pl_module, state["metrics"])
        epoch_sums.load(trainer, state["logged"])
        monitored.load(trainer, state.get("monitored", {}))  # which checkpoints of 0.1 lack
        load_layers(pl_module, state["layers"])
        _set_rng_states(state["random"] | {"numpy": _numpy_state(state["random"]["numpy"])})

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Store the state: an interrupted validation is repeated from its start."""
        self._before_validation, self._repeats_validation = _of_this_place(pl_module), True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the state of here from now on, but for metrics; checkpoint callbacks run later."""
        self._repeats_validation = False


def _of_this_place(module: nn.Module) -> dict[str, Any]:
    random = _collect_rng_states()
    kind, keys, *rest = random["numpy"]
    metrics = {
        name: {"count": metric._update_count, "state": _copied(metric.metric_state)}
        for name, metric in module.named_modules()
        if isinstance(metric, Metric) and metric.update_called
    }
    return {"random": random | {"numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest)}, "metrics": metrics}


def _numpy_state(state: tuple[Any, ...]) -> tuple[Any, ...]:
    kind, keys, *rest = state
    return (kind, keys.numpy().astype(np.uint32), *rest)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """Copy a metric's state, whose values are tensors or lists of tensors."""
    return {
        name: value.clone() if isinstance(value, Tensor) else [item.clone() for item in value]
        for name, value in state.items()
    }


def _load_metrics(module: nn.Module, metrics: dict[str, Any]) -> None:
    for name, saved in metrics.items():
        metric = module.get_submodule(name)
        assert isinstance(metric, Metric)
        for key, value in saved["state"].items():
            setattr(metric, key, _on(metric.device, value))
        metric._update_count = saved["count"]


def _on(device: torch.device, value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return value.to(device) if isinstance(value, Tensor) else [item.to(device) for item in value]


def _unlike_rank_0(module: nn.Module) -> dict[str, Any]:
    """Buffers and extra state that differ from rank 0's; empty on rank 0."""
    own = _state_of_layers(module)
    if (group := host_group()) is None:
        return {}
    digests = {name: _digest(value) for name, value in own.items()}
    first: list[Any] = [digests]
    dist.broadcast_object_list(first, src=0, group=group)
    return {name: _on_host(value) for name, value in own.items() if digests[name] != first[0].get(name)}


def _state_of_layers(module: nn.Module) -> dict[str, Any]:
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in module.state_dict().items() if name not in parameters}


def _on_host(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _digest(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(_on_host(value), file)
    return hashlib.blake2b(file.getvalue()).digest()


@torch.no_grad()
def load_layers(module: nn.Module, layers: dict[str, Any]) -> None:
    for name, value in layers.items():
        place, _, key = name.rpartition(".")
        layer = module.get_submodule(place)
        if key == "_extra_state":
            layer.set_extra_state(value)
        else:
            layer.get_buffer(key).copy_(value)


def _gathered(state: dict[str, Any]) -> list[dict[str, Any]]:
    """States of all ranks on rank 0; on other ranks only their own, which isn't written."""
    if (group := host_group()) is None:
        return [state]
    states: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(state, states, dst=0, group=group)
    return states or [state]
