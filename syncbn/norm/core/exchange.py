"""Sums over the ranks of a process group; all communication of the layers is here."""

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from syncbn.norm.core import backlog, compat
from syncbn.norm.core.choice import agree


class Pending(Protocol):
    """A sum in progress."""

    def wait(self) -> object:
        """Wait until the sent buffer holds the sum."""


class Exchange(Protocol):
    """Interface for sums over the ranks of a group. Every rank must make the same calls in the same order.

    Attributes:
        name: its name in SYNCBN_EXCHANGE.
    """

    name: str

    def sum(self, buffer: Tensor) -> None:
        """Replace each rank's buffer by the sum of all ranks' buffers."""

    def send(self, buffer: Tensor) -> Pending:
        """Start a sum. The buffer must not be used until `wait` has returned."""


class Collective:
    """The process group's all-reduce, for any device and group."""

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
    """Fastest exchange for such a buffer and group. The ranks agree on it at the first call."""
    agreed = _agreed(group, buffer)
    exchange = Collective(group) if isinstance(agreed, str) else agreed
    USED.add(exchange.name)
    return exchange


def describe(group: ProcessGroup, buffer: Tensor) -> str:
    """Describe that exchange, with the reason if it isn't the one-shot exchange; every rank calls it."""
    agreed = _agreed(group, buffer)
    return f"collective: {agreed}" if isinstance(agreed, str) else agreed.name


def _agreed(group: ProcessGroup, buffer: Tensor) -> Exchange | str:
    """The one-shot exchange, or why it isn't used."""
    if not (buffer.is_cpu and buffer.dtype in _DTYPES and type(buffer) in _TYPES):
        return f"a {type(buffer).__name__} of {buffer.dtype} on {buffer.device.type}"
    agreed = _AGREED.get(group)
    if agreed is None:
        agreed = _AGREED[group] = agree(group)
    return agreed


def use(exchange: Exchange, group: ProcessGroup) -> None:
    """Sum float buffers of CPU ranks over a group by this exchange from now on; every rank calls it."""
    _AGREED[group] = exchange


# Plain tensors in this process's memory: not on a GPU, not traced, and no subclass with special handling.
_DTYPES = (torch.float64, torch.float32)
_TYPES = (Tensor, nn.Parameter)
_AGREED: weakref.WeakKeyDictionary[ProcessGroup, Exchange | str] = weakref.WeakKeyDictionary()
# Names of the exchanges that this process has used.
USED: set[str] = set()


def all_sum(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum over ranks, differentiable to any order. The tensor may be overwritten."""
    if group is None:
        return tensor
    if torch.compiler.is_compiling():
        return torch.ops.syncbn.all_sum(tensor, group.group_name)
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise NotImplementedError(
            "torch.jit.trace records no message between ranks: trace the model in evaluation mode"
        )
    if compat.joins_uneven_inputs():
        raise NotImplementedError(
            "DDP's join() knows the messages of DDP alone, and not those of a norm over all ranks: give ranks without "
            "data empty batches, with syncbn.mean_over_ranks for the loss, or use join(throw_on_early_termination=True)"
        )
    if compat.functorch_transforms() or (torch.is_grad_enabled() and tensor.requires_grad):
        return _AllSum.apply(tensor, group)
    exchange = exchange_for(group, tensor)
    if backlog.has_work():
        pending = exchange.send(tensor)
        try:
            backlog.work_off()
        finally:
            pending.wait()
    else:
        exchange.sum(tensor)
    return tensor


class PendingSum:
    """Sums of several tensors over ranks in one message, in progress until `wait`."""

    def __init__(self, tensors: Sequence[Tensor], group: ProcessGroup | None) -> None:
        self._tensors = list(tensors)
        self._sent: Pending | None = None
        if group is not None:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            parts = flat.split([tensor.numel() for tensor in tensors])
            self._tensors = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
            self._sent = exchange_for(group, flat).send(flat)

    def wait(self) -> list[Tensor]:
        """Return the sums; the first call waits for them."""
        if self._sent is not None:
            self._sent.wait()
            self._sent = None
        return self._tensors

    def __getstate__(self) -> dict[str, Any]:
        self.wait()  # a copy couldn't wait
        return self.__dict__


class _AllSum(torch.autograd.Function):
    """Differentiable sum: every rank's loss depends on it, so a summand's gradient is the sum of all gradients."""

    @staticmethod
    def forward(tensor: Tensor, group: ProcessGroup) -> Tensor:
        return all_sum(tensor.clone(), group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_sum(grad.clone(), ctx.group), None


# For graphs. torch's functional all-reduce doesn't work: Inductor reduces in place, and the parts of a reduced `cat`,
# which a backward pass may need, share its memory. See docs/decisions/0003.
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

# On an empty rank nothing depends on the sum. Inductor would drop it as dead code, and the other ranks would hang.
torch.fx.node.has_side_effect(torch.ops.syncbn.all_sum.default)


def communicating_group(process_group: ProcessGroup | None) -> ProcessGroup | None:
    """Group to reduce over: `process_group`, or the default group; None if there are no other ranks."""
    if process_group is None:
        process_group = _default_group()
    if process_group is None or torch.compiler.is_compiling():
        return process_group  # a graph asks the group's name when it runs, and then there may be more ranks
    return process_group if process_group.size() > 1 else None


def _default_group() -> ProcessGroup | None:
    if not dist.is_available():
        return None
    # Not dist.is_initialized() alone, which the compiler takes for a constant: on an attribute it puts a guard, so that
    # a model compiled before there was a group, or with another one, is compiled anew.
    group = dist.GroupMember.WORLD
    if torch.compiler.is_compiling() and not dist.is_initialized():
        return None  # the compiler of torch 2.8 takes a WORLD of None for a group
    return group


class OwnGroup:
    """The ranks that a layer synchronizes over: shared by its copies, and left out of its pickles.

    No process group outlives its processes. What is loaded knows that it had one, so that it doesn't go on with others.

    Args:
        group: None for the default group, whatever that is when the layer runs.

    Raises:
        TypeError, ValueError: as `check_group`.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        check_group(group)
        self.group = group
        self.is_lost = False
        # The compiler guards on it: of a group itself it takes any other for the same.
        self.key = "" if group is None else f"{group.group_name} of {group.size()}"

    def communicating(self) -> ProcessGroup | None:
        """See `communicating_group`.

        Raises:
            ValueError: a loaded layer hasn't been told its group yet.
        """
        if self.is_lost and _default_group() is not None:
            raise ValueError(
                "this layer synchronized over a process group of its own, which no file holds: set layer.process_group "
                "(None for all ranks), or syncbn.norm.core.groups.set_process_group(model, group) for all layers"
            )
        return communicating_group(self.group if self.key else None)

    def __deepcopy__(self, memo: dict[int, Any]) -> "OwnGroup":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _loaded_group, (self.group is not None or self.is_lost,)


def _loaded_group(is_lost: bool) -> OwnGroup:
    own = OwnGroup(None)
    own.is_lost = is_lost
    return own


def largest_over_ranks(number: int, device: torch.device, group: ProcessGroup | None) -> int:
    """Largest of the ranks' numbers. The host waits for it."""
    if group is None:
        return number
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    return int(largest.item())


def check_group(process_group: ProcessGroup | None) -> None:
    """Raise `TypeError` unless it is a process group, and `ValueError` for one without this rank."""
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
