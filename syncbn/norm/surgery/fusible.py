"""Which norms can be computed in one with the activation after them."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.fusion.deferred import SUM, slope_of
from syncbn.norm.surgery.trace import Operation, Trace, symbolic_trace, trace

_SUMS = {*SUM, operator.add, operator.iadd}


def activations_after(
    model: nn.Module, norms: Iterable[nn.Module], example_input: Tensor | None = None
) -> dict[nn.Module, float | str]:
    """The slope of the ReLU (0) or LeakyReLU after each norm, or the reason why the two can't be one.

    They can if the norm is called once, and its output goes into the activation and nowhere else, or into a sum with
    another tensor, which goes into the activation and nowhere else. Hooks may not see what lies between them.

    Args:
        model: read by a symbolic trace (`torch.fx`) or, given `example_input`, by one forward pass in evaluation mode.
        norms: modules of it.
        example_input: an input for one forward pass.

    Raises:
        ValueError: the model can't be traced.
    """
    norms = list(norms)
    if model in norms:
        return dict.fromkeys(norms, "it is the model")
    seen = symbolic_trace(model, norms) if example_input is None else trace(model, example_input)
    return {norm: _activation_after(norm, seen) for norm in norms}


def _activation_after(norm: nn.Module, seen: Trace) -> float | str:
    calls = seen.calls_of(norm)
    if len(calls) != 1:
        return f"it is called {len(calls)} times in a forward pass"
    if compat.has_output_hooks(norm):
        return "it has hooks that see its output"
    use = _only_use(calls[0].output, norm, seen)
    if isinstance(use, Operation) and use.function in _SUMS and _is_sum_of_two(use):
        use = _only_use(use.output, norm, seen, after=use)
    if isinstance(use, str):
        return use
    module = use.modules[-1] if use.modules else None
    slope = _slope(use, module)
    if slope is None:
        kind = getattr(use.function, "__name__", type(use.function).__name__)
        return f"its output goes into {kind}, which isn't ReLU or LeakyReLU"
    if module is not None and type(module) in (nn.ReLU, nn.LeakyReLU) and compat.has_hooks(module):
        return f"the {type(module).__name__} after it has hooks"
    return slope


def _only_use(value: Any, norm: nn.Module, seen: Trace, after: Operation | None = None) -> Operation | str:
    """What is computed with a tensor, if that is one thing; what works in place makes another tensor of it."""
    uses = seen.uses_outside(value, norm)
    if after is not None and after.output is value:
        uses = [use for use in uses if use is not after]
    if uses and uses[0].output is value:
        return uses[0]
    if len(uses) == 1 and not seen.returns(value):
        return uses[0]
    if seen.returns(value):
        return "the model returns its output"
    return f"its output is used {len(uses)} times"


def _slope(use: Operation, module: nn.Module | None) -> float | None:
    if use.function is module:  # in a symbolic trace
        slopes: dict[type[nn.Module], Any] = {nn.ReLU: 0.0, nn.LeakyReLU: getattr(module, "negative_slope", None)}
        slope = slopes.get(type(module))
        return slope if slope is not None and slope >= 0 else None
    return slope_of(use.function, use.args, use.kwargs)


def _is_sum_of_two(use: Operation) -> bool:
    return len(use.args) == 2 and not use.kwargs and use.args[0] is not use.args[1]
