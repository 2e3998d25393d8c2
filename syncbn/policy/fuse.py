"""Folding of batch normalization into the preceding convolution, for inference."""

import warnings
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from syncbn.norm.core import compat
from syncbn.norm.surgery.feeding import Feeding, layer_before, other_use
from syncbn.norm.surgery.forward import Example, Forward, copied, outside_of_modes
from syncbn.norm.surgery.given import check_given
from syncbn.norm.surgery.graph import Call, Graph, Operation, View, is_whole, storages
from syncbn.norm.surgery.record import record
from syncbn.policy.acting import acting_on
from syncbn.policy.batch_statistics import BatchStatistics
from syncbn.policy.fold import Rest, fold, folded, remainder, replace_everywhere, takes_bias
from syncbn.policy.freeze import is_frozen_by, settle_frozen
from syncbn.policy.layers import has_statistics, is_batch_norm, refuse_wrapped
from syncbn.policy.proof import prove_fusion


@dataclass(frozen=True)
class Fusion:
    """Plan for one batch normalization layer.

    Attributes:
        layer: its name in the model.
        feeder: name of the convolution or linear layer to fold it into; None if there is none.
        reason: why it can't be folded; None if it can.
    """

    layer: str
    feeder: str | None
    reason: str | None


def fuse(model: nn.Module, example_input: Example, *, forward: Forward | None = None) -> nn.Module:
    """Copy `model` in eval mode, with batch norms folded into the preceding convolutions and linear layers.

    With y = W∗x + b and s = γ / sqrt(running_var + eps), per output channel,

        γ·(y - running_mean) / sqrt(running_var + eps) + β  =  (s·W)∗x + s·(b - running_mean) + β

    computed in float64. Layers are found by recording all operations of one forward pass
    (`syncbn.norm.surgery.record`). A layer is folded if its input is the output of one convolution (also transposed or
    grouped) or linear layer and used nowhere else, if both are called once, and if its evaluation is the formula above,
    optionally followed by an activation of its own, which is kept. Other layers stay; a warning lists them with the
    reasons, as does `plan_fusion`. Folded layers become `torch.nn.Identity`, so that other layers keep their names.

    The result is proved: on a float64 copy with other γ, β and statistics, on the example and on random numbers, the
    output of each folded layer and of the model must equal the original's to 1e-9 of its largest value.

    Args:
        model: any model with batch normalization layers of torch or of this package; it isn't changed.
        example_input: input of the forward pass. A tuple is the model's positional arguments, a dict its keywords,
            anything else its argument.
        forward: function that calls the model, `forward(model, example_input)`, if that isn't enough.

    Returns:
        A new model for evaluation; its training would be that of a network without norms.

    Raises:
        ValueError: the model is wrapped, compiled or scripted, or has no values yet; the proof fails.
        TypeError: `example_input` isn't what the model takes.

    Source: Markuš, Fusing batch normalization and convolution in runtime, 2018,
    https://nenadmarkus.com/p/fusing-batchnorm-and-conv/.
    """
    with outside_of_modes():
        plan = _plan(model, example_input, forward)
        folds = [step for step in plan if step.rest is not None]
        if folds:
            exact = all(step.exact for step in folds)
            prove_fusion(model, folds, lambda copy: _apply(copy, folds), example_input, forward, exact)
        fused = copied(model).eval()
        settle_frozen(fused)
        _apply(fused, folds)
    left = [f"{step.layer or 'the model'}: {step.reason}" for step in plan if step.reason]
    if left:
        warnings.warn(f"{len(left)} of {len(plan)} batch norms can't be folded: {'; '.join(left)}", stacklevel=2)
    return fused


def plan_fusion(model: nn.Module, example_input: Example, *, forward: Forward | None = None) -> list[Fusion]:
    """Plan what `fuse` would do with each batch normalization layer of `model`, in module order."""
    return [Fusion(step.layer, step.feeder, step.reason) for step in _plan(model, example_input, forward)]


@dataclass(frozen=True)
class _Step(Fusion):
    """A plan with the layer's remainder, None if it isn't folded, and whether the formula holds in float64."""

    rest: Rest | None = None
    exact: bool = True


def _plan(model: nn.Module, example_input: Example, forward: Forward | None) -> list[_Step]:
    check_given(locals())
    refuse_wrapped(model, "fuse")
    graph = record(model, example_input, forward)
    names = {module: name for name, module in model.named_modules()}
    compiled = {compat.compiled_from(module) for module in names if compat.is_compiled(module)}
    plan = []
    for layer, name in names.items():
        if is_batch_norm(layer):
            found: Any = "it is compiled by itself: compile the model after it is fused"
            if layer not in compiled:
                found = _Search(graph, layer, name).feeder()
            if isinstance(found, str):
                plan.append(_Step(name, None, found))
            else:
                plan.append(_Step(name, names[found[0]], None, *found[1:]))
    return plan


def _apply(model: nn.Module, folds: list[_Step]) -> None:
    """Apply the plan, in place."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for step in folds:
        layer = modules[step.layer]
        assert step.rest is not None
        assert step.feeder is not None
        if hasattr(layer, "without_feeder"):  # cross-iteration norms have a hook on their convolution
            layer.without_feeder("folded into it")
        fold(modules[step.feeder], layer)
        replace_everywhere(model, layer, step.rest(layer).train(layer.training))


class _Search:
    """Search for the layer to fold a norm into; each step may find a reason why there is none."""

    def __init__(self, graph: Graph, layer: nn.Module, name: str) -> None:
        self.graph = graph
        self.layer = layer
        self.name = name

    def feeder(self) -> tuple[nn.Module, Rest, bool] | str:
        """Find the layer, the norm's remainder, and whether the formula holds in float64; or the reason why not."""
        calls = self.graph.calls_of(self.layer)
        if len(calls) != 1:
            return f"it is called {len(calls)} times in a forward pass"
        (call,) = calls
        if not has_statistics(self.layer):
            return "it has no running statistics, and normalizes by the batch"
        formula = (
            f"the evaluation of {type(self.layer).__name__} isn't γ·(x - running_mean) / sqrt(running_var + eps) + β"
        )
        if (adapted := acting_on(self.layer, BatchStatistics)) is not None:
            return f"it normalizes by the batch it gets (syncbn.adapt): {adapted.undone_by} first"
        if not all(is_frozen_by(hook) for hook in compat.hooks_of(self.layer)):  # a frozen layer evaluates as others
            return f"{formula} alone: it has hooks"
        if len(call.inputs) != 1 or len(call.outputs) != 1:
            return f"{formula} of one tensor"
        rest = remainder(self.layer, call.inputs[0].shape)
        if rest is None:
            return formula
        found = self._before(call)
        if isinstance(found, str):
            return found
        feeder = found.call.module
        reason = self._own_state(call) or other_use(self.graph, found, call) or self._overflow(feeder)
        return reason or (feeder, *rest)

    def _before(self, call: Call) -> Feeding | str:
        """Find the layer whose output is the norm's input, if its parameters can be changed."""
        found = layer_before(self.graph, call)
        if isinstance(found, str):
            return found
        feeder: Any = found.call.module
        kind = type(feeder).__name__
        if parametrize.is_parametrized(feeder):
            return f"the {kind} before it is parametrized: torch.nn.utils.parametrize.remove_parametrizations"
        for part, (view, operation) in found.parameters.items():
            reason = self._parameter(feeder, found.call.name, part, view, operation)
            if reason is not None:
                return f"the {part} of the {kind} before it {reason}"
        if feeder.bias is None and compat.runs_own_code(feeder) and not takes_bias(feeder, found.call.inputs):
            return f"the {kind} before it has a forward of its own, which wouldn't use a bias"
        return found

    def _parameter(self, feeder: Any, name: str, part: str, view: Any, operation: Operation) -> str | None:
        """Why a parameter of the preceding layer can't be changed."""
        parameter = getattr(feeder, part)
        if view is None and parameter is None:
            return None
        named = self.graph.parameter(view) if isinstance(view, View) else None
        if named is None or f"{name}.{part}" not in named.names or not is_whole(view, named.view):
            return "is computed from other tensors: remove the hook or the method that does it"
        if self.graph.uses_of(named) != [operation]:
            return "is used elsewhere too"
        return None

    def _own_state(self, call: Call) -> str | None:
        """Why the norm's parameters can't be removed, or don't determine its output."""
        mine = set()
        for named in (named for several in self.graph.named.values() for named in several):
            if any(name.rpartition(".")[0] == self.name for name in named.names):
                mine.add(named.view.storage)
                alone = all(name.startswith(f"{self.name}.") for name in named.names)
                if alone and not all(call.holds(op) for op in self.graph.uses_of(named)):
                    return f"its {named.names[0].rpartition('.')[2]} is used elsewhere too"
        inside = self.graph.operations[call.start : call.stop]
        others = storages(view for op in inside for view in op.reads) - mine - {call.inputs[0].storage}
        if any(self.graph.makers(storage, call.start) for storage in others):
            return "it reads other tensors than its input"
        return None

    def _overflow(self, feeder: Any) -> str | None:
        if not all(part.isfinite().all() for part in folded(feeder, self.layer)):
            state = [t for layer in (self.layer, feeder) for t in (*layer.parameters(False), *layer.buffers(False))]
            if not all(t.isfinite().all() for t in state):
                return "its parameters or statistics, or those of the layer before it, aren't finite"
            layer: Any = self.layer
            if bool((layer.running_var.double() + layer.eps <= 0).any()):  # eps is 0 in half precision
                return "its running variance isn't positive"
            return f"the folded weights don't fit {feeder.weight.dtype}: its running variance is too small"
        return None
