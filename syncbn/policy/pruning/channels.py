"""Numbered channels: which are tied, which are held, and where they are in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from syncbn.norm.surgery.graph import View

BLANK = -1  # neither a channel nor held: constants and noise, whose size may follow other tensors'


class Pattern(NamedTuple):
    """Channels of a tensor: one for each slice along a dimension.

    Attributes:
        axis: the dimension.
        labels: channel number of each slice; 0 for one that is held, or `BLANK`.
        zero: for each slice, whether it is 0 if γ and β of its channel are 0.
    """

    axis: int
    labels: tuple[int, ...]
    zero: tuple[bool, ...]

    @property
    def is_blank(self) -> bool:
        """Whether it is the pattern of a constant or of noise."""
        return set(self.labels) == {BLANK}

    def moved(self, axis: int) -> Pattern:
        """Copy with another dimension."""
        return self._replace(axis=axis)

    def with_zero(self, zero: bool) -> Pattern:
        """Copy in which all slices are 0, or none."""
        return self._replace(zero=(zero,) * len(self.zero))

    def but_zero(self, zero: bool) -> Pattern:
        """Copy in which zero slices stay 0 (`zero`) or don't."""
        return self if zero else self.with_zero(False)

    def codes(self, dimensions: int) -> Tensor:
        """Label and zero of each slice in one number, shaped to broadcast to the tensor."""
        values = [2 * label + zero for label, zero in zip(self.labels, self.zero, strict=True)]
        return torch.tensor(values, dtype=torch.int64, device="cpu").view(
            [-1 if d == self.axis else 1 for d in range(dimensions)]
        )


class Channels:
    """Channels numbered from 1. Tied ones are removed together or not at all; held ones stay.

    The number 0 represents all that stays.
    """

    def __init__(self) -> None:
        self._parents = [0]
        self._reasons = {0: "it stays"}  # by root of held channels

    def new(self, count: int) -> tuple[int, ...]:
        """Create `count` untied channels; a single one is held."""
        if count <= 1:
            return (0,) * count
        start = len(self._parents)
        self._parents += range(start, start + count)
        return tuple(range(start, start + count))

    def root(self, label: int) -> int:
        """Representative of all channels tied together; 0 for held ones."""
        root = self._root(label)
        return 0 if root in self._reasons else root

    def reason(self, label: int) -> str | None:
        """What holds a channel; None if it is removable."""
        return self._reasons.get(self._root(label))

    def tie(self, a: int, b: int, reason: str) -> None:
        """Tie two channels. A tie to 0 holds the other one, for `reason`."""
        if a == b or BLANK in (a, b):
            return
        if 0 in (a, b):
            self._reasons.setdefault(self._root(a or b), reason)
            return
        a, b = self._root(a), self._root(b)
        if a != b:
            self._parents[b] = a
            held = self._reasons.pop(b, None)
            if held is not None:
                self._reasons.setdefault(a, held)

    def tie_all(self, a: Iterable[int], b: Iterable[int], reason: str) -> None:
        """Tie channels pairwise."""
        if a != b:
            for one, other in zip(a, b, strict=True):
                self.tie(one, other, reason)

    def hold(self, labels: Iterable[int], reason: str) -> None:
        """Hold channels, and those tied to them."""
        for label in labels:
            self.tie(0, label, reason)

    def hold_all(self, reason: str) -> None:
        """Hold every channel so far."""
        self.hold(range(1, len(self._parents)), reason)

    def pattern(self, codes: Tensor, reason: str) -> Pattern | None:
        """Pattern of a tensor with these codes; None if it has no channel.

        A tensor can only lose whole slices along one dimension; channels in other arrangements are tied until they fit.
        """
        codes = _narrowed(codes)
        roots = _narrowed(codes.clone().apply_(lambda code: self.root(code // 2) if code >= 0 else BLANK))
        several = [axis for axis, size in enumerate(roots.shape) if size > 1]
        if not (roots > 0).any():
            return None
        if not several:
            self.hold(roots.unique().tolist(), f"{reason}, which takes one channel of several")
            return None
        rows = {axis: [set(row.tolist()) - {BLANK} for row in _slices(roots, axis)] for axis in several}
        axis = several[0] if len(several) == 1 else max(several, key=lambda axis: _groups(rows[axis]))
        for row in rows[axis]:
            first, *others = sorted(row) or [BLANK]
            for other in others:
                self.tie(first, other, reason)
        zero = _slices(codes % 2 == 1, axis).all(1)
        labels = tuple(self.root(min(row)) if row else BLANK for row in rows[axis])
        return Pattern(axis, labels, tuple(zero.tolist())) if any(label > 0 for label in labels) else None

    def _root(self, label: int) -> int:
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label


class Memory:
    """Map from the elements of a storage to their channels."""

    def __init__(self, first: View) -> None:
        self._itemsize = _itemsize(first)
        self._written: list[tuple[View, Pattern | None]] = []
        self._codes: Tensor | None = None  # per element, once only parts were written

    def fits(self, view: View) -> bool:
        """Whether a tensor's elements are covered by this map."""
        return _itemsize(view) == self._itemsize and len(view.strides) == len(view.shape)

    def blank(self, view: View) -> bool | None:
        """Whether a tensor is 0, if it has only constants and noise; None otherwise."""
        if not self.fits(view):
            return None
        if self._codes is None:
            patterns = [pattern for _, pattern in self._written]
            if any(pattern is None or not pattern.is_blank for pattern in patterns):
                return None
            return all(all(pattern.zero) for pattern in patterns if pattern is not None)
        codes = self._spread(view).as_strided(view.shape, view.strides, view.offset)
        return bool((codes % 2 == 1).all()) if bool((codes < 0).all()) else None

    def write(self, view: View, pattern: Pattern | None) -> None:
        """Record the channels of a written tensor."""
        if (self._codes is None and not self._written) or (
            self._codes is None and _place(self._written[0][0]) == _place(view)
        ):
            self._written = [(view, pattern)]
        else:
            self._codes = self._spread(view)
            self._lay(view, pattern)

    def read(self, view: View, channels: Channels, reason: str) -> Pattern | None:
        """Channels of a tensor."""
        if self._codes is None:
            written, pattern = self._written[0]
            if pattern is None or _place(written) == _place(view):
                return pattern
        self._codes = self._spread(view)
        return channels.pattern(self._codes.as_strided(view.shape, view.strides, view.offset), reason)

    def labels(self) -> list[int]:
        """All channels in the storage."""
        if self._codes is not None:
            return [code // 2 for code in self._codes.unique().tolist() if code > 1]
        return [label for _, pattern in self._written if pattern for label in pattern.labels if label > 0]

    def _spread(self, also: View) -> Tensor:
        """Code of every element, up to the extent of the views."""
        views = [also, *(view for view, _ in self._written)]
        size = max(_end(view) for view in views)
        codes = self._codes
        if codes is None or len(codes) < size:
            self._codes = torch.zeros(size, dtype=torch.int64, device="cpu")
            if codes is not None:
                self._codes[: len(codes)] = codes
            for view, pattern in self._written:
                self._lay(view, pattern)
            self._written = []
        assert self._codes is not None
        return self._codes

    def _lay(self, view: View, pattern: Pattern | None) -> None:
        assert self._codes is not None
        codes = torch.zeros((), dtype=torch.int64, device="cpu") if pattern is None else pattern.codes(len(view.shape))
        self._codes.as_strided(view.shape, view.strides, view.offset).copy_(codes.expand(view.shape))


def _narrowed(codes: Tensor) -> Tensor:
    """Reduce dimensions along which all slices are equal to size 1."""
    for axis, size in enumerate(codes.shape):
        if size > 1 and bool((codes == (first := codes.narrow(axis, 0, 1))).all()):
            codes = first
    return codes


def _slices(tensor: Tensor, axis: int) -> Tensor:
    """Slices along a dimension, each as a row."""
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def _groups(rows: list[set[int]]) -> int:
    """Number of independent channels left if those of each slice are tied."""
    parts: list[set[int]] = []
    for row in rows:
        touching = [part for part in parts if part & row]
        parts = [part for part in parts if not part & row] + [row.union(*touching)]
    return sum(bool(part) and 0 not in part for part in parts)


def _itemsize(view: View) -> int:
    return 0 if view.dtype is None else view.dtype.itemsize


def _place(view: View) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    return view.shape, view.strides, view.offset


def _end(view: View) -> int:
    if 0 in view.shape:
        return view.offset
    return view.offset + 1 + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
