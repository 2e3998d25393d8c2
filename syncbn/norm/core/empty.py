"""Empty batches in graphs of Inductor before torch 2.11, which drops what no element of a result needs.

An empty rank's sums over the ranks are such: the other ranks would wait for them for ever. So a sample that doesn't
count stands for the batch, behind two operators that the compiler can't see through: their results need every sum.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def in_its_place(forward: Callable[..., Any]) -> Callable[..., Any] | None:
    """Make a training `forward` for empty batches, from one that takes a mask; None for one that doesn't."""
    names = list(inspect.signature(forward).parameters)[1:]
    if "mask" not in names:
        return None

    def with_a_stand_in(self: Any, *args: Any, **kwargs: Any) -> Any:
        named = {**{names[i]: value for i, value in enumerate(args)}, **kwargs}
        x = named[names[0]]
        sample = torch.ops.syncbn.stand_in(x)
        named.update({names[0]: sample, "mask": sample.new_zeros(sample[:, 0].shape, dtype=torch.bool)})
        return torch.ops.syncbn.emptied(forward(self, **named), x.shape)

    return with_a_stand_in


@torch.library.custom_op("syncbn::stand_in", mutates_args=())
def stand_in(empty: Tensor) -> Tensor:
    """Zeros with the shape of `empty`, but for the dimensions of size 0: these have size 1."""
    return empty.new_zeros([max(size, 1) for size in empty.shape])


@torch.library.custom_op("syncbn::emptied", mutates_args=(), schema="(Tensor sample, SymInt[] size) -> Tensor")
def emptied(sample: Tensor, size: Sequence[int]) -> Tensor:
    """An empty tensor that is ready when `sample` is."""
    return sample.new_empty(size)


@stand_in.register_fake
def _(empty: Tensor) -> Tensor:
    return empty.new_empty([max(size, 1) for size in empty.shape])


@emptied.register_fake
def _(sample: Tensor, size: Sequence[int]) -> Tensor:
    return sample.new_empty(size)


def _keep_size(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.size = inputs[0].shape


stand_in.register_autograd(lambda ctx, grad: torch.ops.syncbn.emptied(grad, ctx.size), setup_context=_keep_size)
emptied.register_autograd(lambda ctx, grad: (grad.new_zeros(ctx.size), None), setup_context=_keep_size)
