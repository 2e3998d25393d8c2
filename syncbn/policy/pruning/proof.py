"""Proof that a smaller network computes what the original does without the removed channels; search for a fault."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from syncbn.norm.surgery.forward import Example, Forward, copied
from syncbn.norm.surgery.graph import Graph, Operation
from syncbn.norm.surgery.record import record
from syncbn.norm.surgery.recorder import Observer
from syncbn.policy.proof import Difference, NoNoise, Rehearsal
from syncbn.policy.pruning.channels import Pattern
from syncbn.policy.pruning.shrink import Removal


@dataclass(frozen=True)
class Mismatch:
    """Channels that can't be removed, and the operation that shows it."""

    labels: set[int]
    reason: str


class PruningProof:
    """Compares a smaller network with the original, with masks and with γ and β of 0."""

    def __init__(self, model: nn.Module, graphs: list[Graph], example_input: Example, forward: Forward | None) -> None:
        self._rehearsal = Rehearsal.of(model, example_input, forward)
        self._graphs = graphs

    def fault(self, removal: Removal) -> Mismatch | None:
        """Find where the smaller network differs from the original without the removed channels; None if nowhere."""
        rehearsal = self._rehearsal
        small, masked, silent = (copied(rehearsal.model) for _ in range(3))
        removal.mask(masked)
        removal.silence(silent)
        try:
            removal.shrink(small)
        except Exception as error:
            raise ValueError(f"pruning fails: {type(error).__name__}: {error}; the model is unchanged") from error
        for example in rehearsal.examples:
            try:
                returned = rehearsal.run(small, example)
            except Exception as error:
                return self._diverging(removal, small, example, 0, f"the smaller network raises: {error}")
            for whole, what in ((masked, "masked"), (silent, "with γ and β of 0")):
                try:
                    rehearsal.compare_with(whole, returned, example, f"it isn't the network {what}")
                except Difference as error:
                    return self._differing(removal, small, whole, example, str(error))
        if len(self._graphs) > 1:
            try:
                record(small, rehearsal.examples[0], rehearsal.forward, training=True)
            except Exception as error:
                return self._diverging(removal, small, rehearsal.examples[0], 1, f"in training it raises: {error}")
        return None

    def _diverging(self, removal: Removal, small: nn.Module, example: Example, number: int, why: str) -> Mismatch:
        """First operation of the smaller network with an unexpected kind or shape."""
        begun = Graph()
        with contextlib.suppress(Exception):  # fails as before; the recorded part is enough
            record(small, example, self._rehearsal.forward, training=number == 1, graph=begun)
        flow, whole = removal.flow, self._graphs[number]
        last: set[int] = set()
        for mine, theirs in zip(begun.operations, whole.operations, strict=False):
            key = (number, theirs.index)
            returned = {label for pattern in flow.returned[key] if pattern for label in pattern.labels if label > 0}
            about = flow.taken[key] | returned
            if any(flow.channels.root(label) in removal.roots for label in about):
                last = about
            expected = [_shape(v.shape, p, removal) for v, p in zip(theirs.outputs, flow.returned[key], strict=True)]
            found = [view.shape for view in mine.outputs]
            as_expected = self._is_of_parameter(number, theirs) or _fits(found, expected)
            if mine.kind != theirs.kind or not as_expected:
                return Mismatch(last, f"{theirs}, where {why}")
        return Mismatch(last, why)

    def _differing(self, removal: Removal, small: nn.Module, whole: nn.Module, example: Example, why: str) -> Mismatch:
        """First operation that returns different numbers in the smaller network."""
        expected: list[list[float]] = []
        found: list[int] = []
        flow, forward = removal.flow, self._rehearsal.forward
        operations = self._graphs[0].operations

        def note(operation: Operation, tensors: list[Tensor]) -> None:
            patterns = flow.returned.get((0, operation.index), [])
            follows = any(pattern is not None and pattern.is_blank for pattern in patterns)
            if follows or (operation.index < len(operations) and self._is_of_parameter(0, operations[operation.index])):
                expected.append([])
                return
            kept = [_kept(t, p, removal) for t, p in zip(tensors, patterns, strict=False)]
            expected.append([number for tensor in kept for number in _fingerprint(tensor)])

        def check(operation: Operation, tensors: list[Tensor]) -> None:
            mine = [number for tensor in tensors for number in _fingerprint(tensor)]
            at = operation.index
            if not found and at < len(expected) and expected[at] and not _alike(mine, expected[at]):
                found.append(at)

        self._watch(whole, example, forward, note)
        self._watch(small, example, forward, check)
        at = found[0] if found else len(operations) - 1
        return Mismatch(flow.taken.get((0, at), set()), f"{operations[at]}, from where on {why}")

    def _is_of_parameter(self, number: int, operation: Operation) -> bool:
        """Whether an operation only makes a view of a parameter; its channels are known where it is read."""
        named = self._graphs[number].named
        return operation.is_geometry and any(view.storage in named for view in operation.reads)

    def _watch(self, model: nn.Module, example: Example, forward: Forward | None, watch: Observer) -> None:
        operations: list[Operation] = []

        def in_order(operation: Operation, tensors: list[Tensor]) -> None:
            operations.append(operation)
            watch(operation, tensors)

        with NoNoise():
            record(model, example, forward, watch=in_order)


def _fits(found: list[tuple[int, ...]], expected: list[tuple[int, ...] | None]) -> bool:
    return len(found) == len(expected) and all(b in (a, None) for a, b in zip(found, expected, strict=True))


def _shape(shape: tuple[int, ...], pattern: Pattern | None, removal: Removal) -> tuple[int, ...] | None:
    """Shape of a tensor without the removed channels; None for a constant, whose shape may follow another's."""
    if pattern is None:
        return shape
    if pattern.is_blank:
        return None
    return tuple(len(removal.keeps(pattern.labels)) if d == pattern.axis else n for d, n in enumerate(shape))


def _kept(tensor: Tensor, pattern: Pattern | None, removal: Removal) -> Tensor:
    if pattern is None:
        return tensor
    stay = torch.tensor(removal.keeps(pattern.labels), dtype=torch.long, device=tensor.device)
    return tensor.index_select(pattern.axis, stay)


def _fingerprint(tensor: Tensor) -> list[float]:
    """Fingerprint of a tensor: size, sum, sum weighted by position, and sum of absolute values."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    values = tensor.detach().double().flatten().nan_to_num(posinf=1e30, neginf=-1e30)
    places = torch.arange(len(values), dtype=torch.float64, device=values.device).sin()
    return [float(len(values)), float(values.sum()), float((values * places).sum()), float(values.abs().sum())]


def _alike(a: list[float], b: list[float]) -> bool:
    if len(a) != len(b):
        return False
    sizes = [1e-6 * max(1.0, abs(b[i - i % 4 + 3])) for i in range(len(b))]
    return all(math.isclose(x, y, rel_tol=1e-6, abs_tol=size) for x, y, size in zip(a, b, sizes, strict=True))
