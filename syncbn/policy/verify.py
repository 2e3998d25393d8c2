"""Verification that a model whose batch is split over ranks computes the same as in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.capabilities import synchronizes
from syncbn.norm.core.exchange import all_sum, communicating_group
from syncbn.norm.core.moments import mean_over_ranks
from syncbn.norm.surgery.forward import Forward, refuse_without_values, seeded, tensors_in
from syncbn.norm.surgery.given import check_given
from syncbn.policy.batches import call
from syncbn.policy.chance import WithoutChance
from syncbn.policy.layers import is_batch_norm
from syncbn.policy.processes import on_ranks

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class VerifyReport:
    """Result of the comparison of ranks with one process; `bool(report)` is whether everything agrees.

    Attributes:
        sizes: number of samples of each rank.
        forward: largest difference of a layer's output, relative to the output's largest value.
        gradients: largest difference of a gradient, averaged over ranks as in DDP, relative to the largest of all
            gradients, since that of a bias before a norm is 0 up to rounding.
        statistics: largest difference of a buffer after the step, relative to its largest value.
        layer: first layer, or else first parameter or buffer, that differs; None if all agree.
        reason: the likely reason; None if all agree.
    """

    sizes: list[int]
    forward: float
    gradients: float
    statistics: float
    layer: str | None = None
    reason: str | None = None

    def __bool__(self) -> bool:
        return self.layer is None

    def __str__(self) -> str:
        found = f"forward {self.forward:.1e}, gradients {self.gradients:.1e}, statistics {self.statistics:.1e}"
        shares = " + ".join(map(str, self.sizes))
        verdict = "are one process" if self else f"differ from one process, first in {self.layer}: {self.reason}"
        return f"ranks with {shares} samples {verdict} (relative differences: {found})"


@dataclass
class _Step:
    """One training step: outputs of all layer calls in order; gradients; buffers; the loss; random operators."""

    outputs: list[tuple[str, Tensor]]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    loss: Tensor
    drawn: list[str]


def verify(
    model: nn.Module,
    batch: Any,
    ranks: int = 2,
    *,
    loss: Loss | None = None,
    forward: Forward | None = None,
    tolerance: float = 1e-8,
    timeout_s: float = 120.0,
) -> VerifyReport:
    """Run one training step in one process and on several gloo ranks, and compare outputs, gradients and statistics.

    The ranks are new processes on the CPU. They split the batch into unequal shares, in float64, and average gradients
    as DDP does. The model isn't changed.

    Ranks would draw other random numbers for a sample than one process does. So every sample gets the same constant
    instead: dropout and stochastic depth, as modules or functions, then change nothing. Python's and NumPy's generators
    are seeded alike.

    In a script, call it under `if __name__ == "__main__":`, because the processes import the script.

    Args:
        model: as it is about to be wrapped by DDP, for example after `syncbn.convert(model, "sync")`. Its process
            groups are replaced by that of the new ranks.
        batch: a tensor (N, ...), nested tuples, lists and dicts of tensors with the same N, or lists of N samples each,
            such as images of several sizes and their targets. The model is called as by `recalibrate`.
        ranks: number of processes; at least 2, and fewer than N.
        loss: from (model, batch) to the loss that your training minimizes; a function that can be imported. Without
            it, the mean square of the outputs' distance from fixed numbers over all ranks' samples, of the first
            tensor in the batch.
        forward: how to call the model where there is no `loss`, `forward(model, batch)`; a function that can be
            imported.
        tolerance: differences up to this part of a tensor's largest value are rounding.
        timeout_s: seconds to wait for the ranks.

    Returns:
        A report: whether all agree, the differences, and the first layer that differs, with the reason.

    Raises:
        ValueError: too few ranks or samples; tensors with different numbers of samples; a model or loss that can't be
            sent to another process, or is scripted; a step that fails there.
        TimeoutError: the ranks didn't answer, because some wait for messages that others don't send.
    """
    check_given(locals())
    if ranks < 2:
        raise ValueError(f"ranks must be at least 2, got {ranks}")
    refuse_without_values(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__}, whose layers can't be seen: verify the model "
                "before it is scripted or traced"
            )
    batch = compat.tree_map_only(Tensor, _in_float64, batch)
    count = _count(batch)
    if count <= ranks:
        raise ValueError(f"{ranks} ranks need a batch of more than {ranks} samples to split unevenly, got {count}")
    model = _prepared(model)
    if loss is not None and forward is not None:
        raise ValueError("give loss= or forward=: a loss calls the model itself")
    loss = loss or partial(mean_square, forward=forward)
    single = _step(copy.deepcopy(model), batch, loss)
    sizes = _uneven(count, ranks)
    starts = [sum(sizes[:rank]) for rank in range(ranks)]
    shares = [_share(batch, start, size) for start, size in zip(starts, sizes, strict=True)]
    answers = on_ranks(_tensors_of_step, [(model, share, loss) for share in shares], timeout_s)
    steps = [_Step(**answer) for answer in answers]
    return _compare(model, single, steps, sizes, tolerance)


def mean_square(model: nn.Module, batch: Any, forward: Forward | None = None) -> Tensor:
    """The mean square of the outputs' distance from fixed numbers, over all ranks' samples.

    The plain mean square of a normalized output is constant, and so has no gradient.
    """
    found = [t.flatten(1) for t in tensors_in(call(model, batch, forward)) if t.dim() > 1 and t.is_floating_point()]
    if not found:
        raise ValueError(
            "the model returns no features of samples, (N, ...), but numbers of the whole batch at most, such as a "
            "loss: give loss=, or forward= that returns features"
        )
    outputs = torch.cat(found, dim=1)
    numbers = torch.arange(outputs.shape[1], dtype=outputs.dtype, device=outputs.device).sin()
    return mean_over_ranks((outputs - numbers).square().mean(dim=1))


def _step(model: nn.Module, batch: Any, loss: Loss) -> _Step:
    outputs: list[tuple[str, Tensor]] = []
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _, args, output, name=name: outputs.extend((name, t.detach().clone()) for t in tensors_in(output))
        )
    # Python's and NumPy's numbers may choose layers: seeded, they are the same everywhere.
    with seeded(set()), WithoutChance() as chance:
        value = loss(model, batch)
        value.backward()
    group = communicating_group(None)
    ranks = 1 if group is None else group.size()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients[name] = all_sum(gradient, group) / ranks
    average = all_sum(value.detach().clone(), group) / ranks
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return _Step(outputs, gradients, buffers, average, chance.drawn)


def _tensors_of_step(model: nn.Module, batch: Any, loss: Loss) -> dict[str, Any]:
    return vars(_step(model, batch, loss))


def _compare(model: nn.Module, single: _Step, steps: list[_Step], sizes: list[int], tolerance: float) -> VerifyReport:
    calls = min(len(single.outputs), *(len(step.outputs) for step in steps))
    forward = []
    for i in range(calls):
        name, expected = single.outputs[i]
        parts = [step.outputs[i][1] for step in steps]
        if (dim := _samples_dim(expected, parts, sizes)) is not None:
            forward.append((name, _difference(torch.cat(parts, dim), expected)))
    steepest = max((float(value.abs().max()) for value in single.gradients.values() if value.numel()), default=0.0)
    gradients = [
        (name, _difference(steps[0].gradients[name], value, steepest)) for name, value in single.gradients.items()
    ]
    statistics = [
        (name, max(_difference(step.buffers[name], value) for step in steps)) for name, value in single.buffers.items()
    ]
    layer, reason = None, None
    infinite = next((name or "the model" for name, output in single.outputs if not output.isfinite().all()), None)
    if infinite is not None:
        layer, reason = infinite, "its output isn't finite in one process either: look at the batch and at the weights"
    elif len({len(step.outputs) for step in (single, *steps)}) > 1:
        layer, reason = "the model", "ranks call other layers than one process does, depending on the data"
    elif found := _first_above(forward, tolerance):
        layer, reason = found, _why(model, found, [name for name, _ in single.outputs], single.drawn)
    elif found := _first_above(statistics, tolerance):
        layer, reason = found, "its batches are normalized alike, but this buffer isn't"
    elif found := _first_above(gradients, tolerance):
        layer, reason = found, _why_gradients(single, steps)
    return VerifyReport(sizes, _largest(forward), _largest(gradients), _largest(statistics), layer, reason)


def _samples_dim(whole: Tensor, parts: list[Tensor], sizes: list[int]) -> int | None:
    """Dimension along which ranks' outputs are shares of the samples; None if there isn't one."""
    for dim, count in enumerate(whole.shape):
        rest = (*whole.shape[:dim], *whole.shape[dim + 1 :])
        shapes = [(*rest[:dim], size, *rest[dim:]) for size in sizes]
        if count == sum(sizes) and [tuple(part.shape) for part in parts] == shapes:
            return dim
    return None


def _largest(values: list[tuple[str, float]]) -> float:
    return max((value for _, value in values), default=0.0)


def _first_above(values: list[tuple[str, float]], tolerance: float) -> str | None:
    return next((name or "the model" for name, value in values if not value <= tolerance), None)


def _why(model: nn.Module, name: str, calls: list[str], drawn: list[str]) -> str:
    layer = dict(model.named_modules()).get("" if name == "the model" else name, model)
    if is_batch_norm(layer) and not synchronizes(layer):
        return (
            f'it is a {type(layer).__name__} that takes its rank\'s batch alone: model = syncbn.convert(model, "sync")'
        )
    if calls.count(name) > 1:
        return f"it is called {calls.count(name)} times in a forward pass, and one call depends on the others"
    others = f"{type(layer).__name__} computes something of a sample from the other samples of its rank's batch"
    return f"{others}, or draws other random numbers there ({', '.join(drawn)})" if drawn else others


def _why_gradients(single: _Step, steps: list[_Step]) -> str:
    average = float(steps[0].loss)
    if _difference(steps[0].loss, single.loss) > 1e-8:
        return (
            f"the loss isn't weighted: its average over ranks is {average:.6g}, and {float(single.loss):.6g} in one "
            "process; return syncbn.mean_over_ranks of the samples' losses"
        )
    return "outputs, loss and statistics agree, but this gradient doesn't"


def _difference(got: Tensor, expected: Tensor, scale: float = 0.0) -> float:
    """Largest difference relative to the largest expected value, or to `scale` if that is larger."""
    if got.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    largest = expected.double().abs().max().clamp(min=max(scale, 1e-30))
    return float((got.double() - expected.double()).abs().max() / largest)


def _prepared(model: nn.Module) -> nn.Module:
    """Copy in float64 to send to other processes, with the same modes but without process groups."""
    model = copy.deepcopy(model).cpu().double()
    for module in model.modules():
        if getattr(module, "process_group", None) is not None:
            module.process_group = None  # type: ignore[assignment]
    return model


def _in_float64(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor


def _count(batch: Any) -> int:
    if _holds_samples(batch):
        return len(batch[0])
    if len(counts := _sizes(batch)) != 1:
        raise ValueError(
            f"a batch must have tensors of one number of samples, got {sorted(counts) or 'no tensor'}; or lists of "
            "samples, (images, targets), of one length"
        )
    return counts.pop()


def _sizes(batch: Any) -> set[int]:
    return {len(t) for t in tensors_in(batch) if t.dim()}


def _holds_samples(batch: Any) -> bool:
    """Whether a batch is (images, targets, ...), each a list with one entry a sample."""
    if not (isinstance(batch, tuple | list) and batch and all(isinstance(part, tuple | list) for part in batch)):
        return False
    targets = any(isinstance(entry, Mapping) for part in batch for entry in part)
    return len({len(part) for part in batch}) == 1 and (targets or len(_sizes(batch)) > 1)


def _uneven(count: int, ranks: int) -> list[int]:
    """Unequal shares that grow with the rank, each at least 1."""
    rest = count - ranks
    cuts = [rest * i * (i + 1) // (ranks * (ranks + 1)) for i in range(ranks + 1)]
    return [1 + stop - start for start, stop in pairwise(cuts)]


def _share(batch: Any, start: int, size: int) -> Any:
    if _holds_samples(batch):
        return type(batch)(part[start : start + size] for part in batch)
    return compat.tree_map_only(Tensor, lambda t: t[start : start + size] if t.dim() else t, batch)
