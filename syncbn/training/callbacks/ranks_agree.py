"""Check that all ranks train the same network in the same way."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncbn.launch.faults import Fault
from syncbn.training.host_group import host_group


class RanksDisagree(Fault, ValueError):
    """Ranks differ where they must be equal."""


class RanksAgree(L.Callback):
    """Compares the ranks' settings, layers, parameters and buffers before a fit, and optionally values during it.

    Ranks with different layers, channels or settings would hang or mix up their numbers; ranks with different weights
    would silently train different networks. Before a fit they exchange a hash of what they are about to train. With
    `every_n_steps` they also exchange a hash of each parameter and buffer, which copies the network to the host: for
    debugging.

    Unsynchronized running statistics, such as those of `norm=batch`, always differ, and are reported as well.

    Args:
        settings: nested settings that must be equal, too.
        every_n_steps: batches between two comparisons of values; None for no comparisons.

    Raises:
        ValueError: every_n_steps below 1.
        RanksDisagree: in a fit, on all ranks, with the name of the first difference.
    """

    def __init__(self, settings: Mapping[str, Any] | None = None, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1 or None, got {every_n_steps}")
        self.settings = settings or {}
        self.every_n_steps = every_n_steps

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare settings and shapes, before DDP processes the network."""
        if stage == "fit":
            _compare(dict([*_flat(self.settings), *_shapes(pl_module)]), "")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare values every n steps."""
        if self.every_n_steps and (batch_idx + 1) % self.every_n_steps == 0:
            _compare(dict(_values(pl_module)), f" in epoch {trainer.current_epoch + 1} after batch {batch_idx + 1}")


def _compare(own: dict[str, str], when: str) -> None:
    if (group := host_group()) is None:
        return
    digests = _of_all(hashlib.blake2b(repr(list(own.items())).encode()).hexdigest(), group)
    if len(set(digests)) == 1:
        return
    first, *others = _of_all(own, group)
    for name in dict.fromkeys([*first, *(name for other in others for name in other)]):
        for rank, other in enumerate(others, start=1):
            if other.get(name) != first.get(name):
                raise RanksDisagree(
                    f"the ranks disagree{when} on {name}: rank {rank} has {other.get(name, 'none')}, "
                    f"rank 0 has {first.get(name, 'none')}; start all ranks with the same command and data, and let "
                    "all of them take the same steps"
                )
    raise RanksDisagree(f"the ranks disagree{when} on the order of {', '.join([*first][:3])}, ...")


def _of_all(value: Any, group: dist.ProcessGroup) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def _flat(settings: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, repr(settings)


def _shapes(module: nn.Module) -> Iterator[tuple[str, str]]:
    for name, layer in module.named_modules():
        yield f"layer {name or 'itself'}", type(layer).__name__
    for name, tensor in _tensors(module):
        yield name, f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _values(module: nn.Module) -> Iterator[tuple[str, str]]:
    for name, tensor in _tensors(module):
        digest = hashlib.blake2b(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        yield name, f"one of norm {tensor.detach().double().norm().item():.17g} ({digest.hexdigest()[:8]})"


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters():
        yield f"parameter {name}", parameter
    for name, buffer in module.named_buffers():
        yield f"buffer {name}", buffer
