"""A convolution or linear layer whose parameters' gradients can wait until a message is under way.

The backward pass of a norm waits for the sums of all ranks. What could be computed meanwhile is the weight gradient of
the layer after it, but autograd has had it computed with the layer's input gradient, before the norm's turn. So the
weight first goes through `_HandOn`, an identity that is made before the norm runs forward. Of the nodes that are ready,
autograd runs the newest, and therefore

    layer:    gives dx; puts dW off, and gives a tensor of NaN in its place
    norm:     sends its sums; dW is computed; waits for the sums; gives dx     (`syncbn.norm.core.exchange.all_sum`)
    identity: takes dW, or computes it if no norm has, and gives it to the weight

The gradients are those of torch, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from syncbn.norm.core import backlog, compat
from syncbn.norm.fusion.operations import LayerCall, LayerOperation
from syncbn.norm.fusion.recomputed import Recomputed


class Link:
    """What the two ends know of each other: the identity on a layer's parameters, and the one call that uses them.

    Attributes:
        before_backward: called when the call's backward pass runs.
        can_wait: whether nothing but the identity sees what the call gives for the parameters' gradients.
    """

    def __init__(self, before_backward: Callable[[], None]) -> None:
        compat.check_that_hooks_are_told()
        self.can_wait = True
        self._before_backward = before_backward
        self._works: dict[int, _ParameterGrads] = {}  # by backward pass

    def put_off(self, work: _ParameterGrads) -> None:
        self._before_backward()
        self._works[compat.backward_pass()] = work
        backlog.put_off(work)

    def take(self) -> _ParameterGrads | None:
        """The work that the call has put off in this backward pass."""
        return self._works.pop(compat.backward_pass(), None) if self._works else None


def hand_on(link: Link, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Views of a layer's parameters, for one call of `apply`. A bias without a gradient needs none."""
    if bias is None or not bias.requires_grad:
        return _HandOn.apply(link, weight, None)[0], bias
    views: tuple[Tensor, Tensor] = _HandOn.apply(link, weight, bias)
    return views


def apply(call: LayerCall, dtype: torch.dtype, link: Link | None) -> Tensor:
    """What a layer returns.

    Args:
        call: with the layer's parameters or, with a link, their views.
        dtype: what x has been cast to, and what the parameters are cast to: not before, since then something else than
            the identity would be given dW.
        link: of the views. The parameters' gradients are computed at once without it.
    """
    args = (call.x, call.weight, call.bias, call.operation, dtype, link)
    if isinstance(call.x, Recomputed):
        y: Tensor = Recomputed.__torch_function__(_Layer.apply, (Recomputed,), args)
    else:
        y = _Layer.apply(*args)
    return y


class _ParameterGrads(backlog.Work):
    """The gradients of weight and bias that a layer owes."""

    def __init__(
        self,
        operation: LayerOperation,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        needs_bias: bool,
        dtypes: tuple[torch.dtype, ...],
    ) -> None:
        super().__init__(dy.device)
        self._operation = operation
        self._tensors: tuple[Tensor, ...] = (dy, x, weight)
        self._needed: tuple[bool, bool, bool] = (False, True, needs_bias)
        self._dtypes = dtypes
        self._versions = self._versions_now()
        self._grads: list[Tensor | None] | None = None

    def do(self) -> None:
        """See `Work`."""
        if self._grads is not None:
            return
        if self._versions != self._versions_now():
            raise RuntimeError(
                "the input of a layer, or the gradient of its output, was changed in place in the backward pass before "
                "the gradient of the layer's weight was computed: leave overlap=True out"
            )
        with torch.no_grad():
            dy, x, weight = self._tensors
            _, *grads = self._operation.grads(dy, x, weight, self._needed)
            self._grads = _of_dtypes(grads, self._dtypes)
        self._tensors = ()

    def result(self) -> list[Tensor | None]:
        """The gradients, for their one taker."""
        self.do()
        assert self._grads is not None
        return self._grads

    def _versions_now(self) -> list[int]:
        return [compat.version_of(tensor) for tensor in self._tensors]


class _HandOn(torch.autograd.Function):
    """Weight and bias unchanged; in the backward pass, the gradients that the layer owes."""

    @staticmethod
    def forward(ctx: Any, link: Link, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        ctx.link = link
        ctx.set_materialize_grads(False)
        # The same memory, and no view to autograd, which would forbid that the parameter is written to.
        return weight.detach(), None if bias is None else bias.detach()

    @staticmethod
    def backward(ctx: Any, dweight: Tensor | None, dbias: Tensor | None) -> tuple[Tensor | None, ...]:
        work = None if torch.compiler.is_compiling() else ctx.link.take()
        return (None, *((dweight, dbias) if work is None else work.result()))


class _Layer(torch.autograd.Function):
    """Saves x and the weight, as torch's own function does."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        operation: LayerOperation,
        dtype: torch.dtype,
        link: Link | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.operation, ctx.dtype, ctx.link = operation, dtype, link
        ctx.dtypes = weight.dtype, weight.dtype if bias is None else bias.dtype
        return operation.forward(x, weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        operation, link = ctx.operation, ctx.link
        cast = weight.to(ctx.dtype)
        if link is not None and torch.is_grad_enabled():
            link.can_wait = False  # create_graph=True: from now on, other ways lead to the weight
        needs_x, needs_weight, needs_bias = _needed(ctx)
        if link is None or not link.can_wait or not needs_weight or not _may_wait():
            dx, dweight, dbias = operation.grads(dy, x, cast, (needs_x, needs_weight, needs_bias))
            return dx, *_of_dtypes((dweight, dbias), ctx.dtypes), *[None] * 3
        dx = operation.grads(dy, x, cast, (True, False, False))[0] if needs_x else None
        link.put_off(_ParameterGrads(operation, dy, x, cast, needs_bias, ctx.dtypes))
        bias_shape = torch.Size((operation.channels_out(weight),))
        dbias = _owed(bias_shape, ctx.dtypes[1], dy.device) if needs_bias else None
        return dx, _owed(weight.shape, ctx.dtypes[0], dy.device), dbias, *[None] * 3


def _needed(ctx: Any) -> tuple[bool, bool, bool]:
    """Whether the gradients of x, weight and bias are wanted: torch's own list doesn't know of `grad(loss, x)`."""
    nodes = [node for node, _ in ctx.next_functions]  # none for a bias that isn't there
    x, weight, bias = ctx.needs_input_grad[:3]
    return x and _will_run(nodes[0]), weight and _will_run(nodes[1]), bias and _will_run(nodes[2])


def _will_run(node: Any) -> bool:
    return torch.compiler.is_compiling() or compat.will_run(node)


def _may_wait() -> bool:
    # What looks for NaN after every step finds them.
    return not (torch.is_anomaly_enabled() or torch.compiler.is_compiling())


def _owed(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """NaN in the place of a gradient that isn't computed yet: whoever reads it can't miss that.

    Modes don't see it: one may look for NaN in all results, and another one, of tensors without memory, would stay with
    what is kept here.
    """
    with compat.no_dispatch_modes():
        return _nan(dtype, device).expand(shape)


@cache
def _nan(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), torch.nan, dtype=dtype, device=device)


def _of_dtypes(grads: Sequence[Tensor | None], dtypes: tuple[torch.dtype, ...]) -> list[Tensor | None]:
    return [None if grad is None else grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)]


def _is_watched(node: Any) -> None:
    if node.link is not None:
        node.link.can_wait = False


# A hook on one of the two nodes would see NaN.
compat.tell_hooks(_Layer, _is_watched)
compat.tell_hooks(_HandOn, _is_watched)
