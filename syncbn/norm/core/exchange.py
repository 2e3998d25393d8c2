"""Sums over the ranks of a process group: the one place where layers talk to each other."""

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from syncbn.norm.core import compat
from syncbn.norm.core.choice import agree


class Pending(Protocol):
    """A sum that is under way."""

    def wait(self) -> object:
        """Return when the buffer that was sent holds the sum."""


class Exchange(Protocol):
    """A way to sum over the ranks of one group. Every rank makes the same calls, in the same order.

    Attributes:
        name: as SYNCBN_EXCHANGE knows it.
    """

    name: str

    def sum(self, buffer: Tensor) -> None:
        """Put the sum of all ranks' buffers in the place of each."""

    def send(self, buffer: Tensor) -> Pending:
        """Begin the same. The buffer isn't touched until `wait` has returned."""


class Collective:
    """The process group's own all-reduce: any device, any group."""

    name = "collective"

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group

    def sum(self, buffer: Tensor) -> None:
        """See `Exchange`."""
        dist.all_reduce(buffer, group=self.group)

    def send(self, buffer: Tensor) -> Pending:
        """See `Exchange`."""
        work = dist.all_reduce(buffer, group=self.group, async_op=True)
        assert work is not None  # this rank is a member
        return work


def exchange_for(group: ProcessGroup, buffer: Tensor) -> Exchange:
    """The fastest way to sum such a buffer over a group. Its ranks agree on it when they first ask."""
    agreed = _agreed(group, buffer)
    exchange = Collective(group) if isinstance(agreed, str) else agreed
    USED.add(exchange.name)
    return exchange


def describe(group: ProcessGroup, buffer: Tensor) -> str:
    """The same in words, with the reason where it isn't the one-shot exchange; every rank calls it."""
    agreed = _agreed(group, buffer)
    return f"collective: {agreed}" if isinstance(agreed, str) else agreed.name


def _agreed(group: ProcessGroup, buffer: Tensor) -> Exchange | str:
    """The one-shot exchange, or why it doesn't serve."""
    if not (buffer.is_cpu and buffer.dtype in _DTYPES and type(buffer) in _TYPES):
        return f"a {type(buffer).__name__} of {buffer.dtype} on {buffer.device.type}"
    agreed = _AGREED.get(group)
    if agreed is None:
        agreed = _AGREED[group] = agree(group)
    return agreed


# Numbers in this process's memory: not a GPU's, not a tracer's, and nothing that torch handles in a way of its own.
_DTYPES = (torch.float64, torch.float32)
_TYPES = (Tensor, nn.Parameter)
_AGREED: weakref.WeakKeyDictionary[ProcessGroup, Exchange | str] = weakref.WeakKeyDictionary()
# Names of the exchanges that this process has summed by.
USED: set[str] = set()


def all_sum(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum over ranks, differentiable to any order. The caller gives the tensor away."""
    if group is None:
        return tensor
    if torch.compiler.is_compiling():
        return torch.ops.syncbn.all_sum(tensor, group.group_name)
    if compat.functorch_transforms() or (torch.is_grad_enabled() and tensor.requires_grad):
        return _AllSum.apply(tensor, group)
    exchange_for(group, tensor).sum(tensor)
    return tensor


class PendingSum:
    """The sums of some tensors over ranks, by one message that is under way until `wait`."""

    def __init__(self, tensors: Sequence[Tensor], group: ProcessGroup | None) -> None:
        self._tensors = list(tensors)
        self._sent: Pending | None = None
        if group is not None:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            parts = flat.split([tensor.numel() for tensor in tensors])
            self._tensors = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
            self._sent = exchange_for(group, flat).send(flat)

    def wait(self) -> list[Tensor]:
        """The sums; the first call waits for them."""
        if self._sent is not None:
            self._sent.wait()
            self._sent = None
        return self._tensors

    def __getstate__(self) -> dict[str, Any]:
        self.wait()  # a copy can't
        return self.__dict__


class _AllSum(torch.autograd.Function):
    """Every rank's loss depends on the sum, so the gradient of each summand is the sum of all ranks' gradients."""

    @staticmethod
    def forward(tensor: Tensor, group: ProcessGroup) -> Tensor:
        return all_sum(tensor.clone(), group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_sum(grad.clone(), ctx.group), None


# For graphs. torch's functional all-reduce won't do: Inductor reduces in place, and when what it reduces is a `cat`,
# the parts of that `cat`, which a backward pass may need, live in the same memory. See docs/decisions/0003.
@torch.library.custom_op("syncbn::all_sum", mutates_args=())
def _all_sum_operator(tensor: Tensor, group_name: str) -> Tensor:
    return all_sum(tensor.clone(), compat.group_by_name(group_name))


@_all_sum_operator.register_fake
def _(tensor: Tensor, group_name: str) -> Tensor:
    return torch.empty_like(tensor)


def _keep_group_name(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.group_name = inputs[1]


def _all_sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.syncbn.all_sum(grad, ctx.group_name), None


_all_sum_operator.register_autograd(_all_sum_backward, setup_context=_keep_group_name)

# On an empty rank nothing depends on the sum, so Inductor would drop it as dead code, and the other ranks would wait.
torch.fx.node.has_side_effect(torch.ops.syncbn.all_sum.default)


def communicating_group(process_group: ProcessGroup | None) -> ProcessGroup | None:
    """The group to reduce over: `process_group`, or the default group; None where there is nobody to talk to."""
    if process_group is None:
        if not (dist.is_available() and dist.is_initialized()):
            return None
        process_group = dist.group.WORLD
    return process_group if process_group is not None and process_group.size() > 1 else None


def largest_over_ranks(number: int, device: torch.device, group: ProcessGroup | None) -> int:
    """The largest of the ranks' numbers. The host waits for it."""
    if group is None:
        return number
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    return int(largest.item())


def check_group(process_group: ProcessGroup | None) -> None:
    """Raise `TypeError` for what isn't a process group and `ValueError` for one without this rank."""
    if process_group is None:
        return
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "this rank isn't a member of process_group; give every rank a group of its own, for example the first "
            "result of torch.distributed.new_subgroups()"
        )
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f"process_group must be a torch.distributed process group or None, got {process_group!r}; "
            "make one with torch.distributed.new_group(ranks)"
        )
