"""Process groups for synchronized norms: the ranks of a node, or n consecutive ranks."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import nn

from syncbn.norm.core.exchange import OwnGroup
from syncbn.norm.core.shared_options import Size
from syncbn.norm.core.tracking import TrackingNorm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def sync_group(size: Size) -> ProcessGroup | None:
    """Divide all ranks into groups, and return this rank's, for the `process_group` of a norm or of `convert`.

    Every rank must call it, with the same size and at the same place, after `init_process_group` (with NCCL, after
    `torch.cuda.set_device`). Each call creates new groups.

    Running statistics differ between groups; a checkpoint written by rank 0 has those of its group.

    Args:
        size: "node" for the ranks of each node, identified by torchrun or SLURM, otherwise by host name; n for ranks 0
            to n-1, n to 2n-1 and so on; "world" for all.

    Returns:
        This rank's group; for "world" None, which norms treat as all ranks.

    Raises:
        ValueError: an unknown name, a number that doesn't divide the number of ranks, different sizes on the ranks, or
            no process group to divide.
    """
    if not (dist.is_available() and dist.is_initialized()):
        if size == "world":
            return None
        raise ValueError(f"sync_group({size!r}) divides a process group: call init_process_group() first")
    # Exchange the sizes before any check: a mistake on one rank must not leave the others waiting.
    answers: list[tuple[Size, str]] = [(size, "")] * dist.get_world_size()
    dist.all_gather_object(answers, (size, _node()))
    if len({repr(asked) for asked, _ in answers}) > 1:
        raise ValueError(f"ranks asked for different sync groups: {[asked for asked, _ in answers]}, in their order")
    check_size(size, dist.get_world_size())
    if size == "world":
        return None
    members: dict[str | int, list[int]] = {}
    for rank, (_, node) in enumerate(answers):
        members.setdefault(node if size == "node" else rank // size, []).append(rank)
    mine, _ = dist.new_subgroups_by_enumeration(list(members.values()))
    return mine


def check_size(size: Size, world_size: int) -> None:
    """Raise `ValueError` if the ranks can't be divided into groups of this size."""
    if size in ("node", "world"):
        return
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"sync_group must be 'node', 'world' or a number of ranks of at least 1, got {size!r}")
    if world_size % size:
        divisors = [n for n in range(1, world_size + 1) if world_size % n == 0]
        raise ValueError(
            f"sync_group={size} doesn't divide the {world_size} rank(s): take one of {divisors}, 'node' or 'world'"
        )


def set_process_group(model: nn.Module, group: ProcessGroup | None) -> None:
    """Set the group of every synchronizing norm of `model`."""
    for layer in model.modules():
        if isinstance(layer, TrackingNorm) and layer.synchronizes:
            layer.process_group = group  # type: ignore[assignment]  # these norms have it
        conversion = vars(layer).get("conversion")  # of the layer that it stands for, whose group may be lost, too
        if conversion is not None and conversion.group is not None and conversion.group.is_lost:
            conversion.group = OwnGroup(group)
        if conversion is not None and isinstance(conversion.original, TrackingNorm):
            own = getattr(conversion.original, "own_group", None)
            if own is not None and own.is_lost:
                conversion.original.process_group = group  # type: ignore[assignment]


def _node() -> str:
    """Identifier of this rank's node."""
    return os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID") or socket.gethostname()
