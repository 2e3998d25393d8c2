"""One-shot sums over ranks of one host through shared memory, by kernels/one_shot.cpp, and detection of lost ranks."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from syncbn.norm.core import compat
from syncbn.norm.core.segment import Segment
from syncbn.norm.kernels import native

CAPACITY = 1 << 16  # bytes of a message in one piece: 2C + 1 float64 numbers of 4,095 channels
IN_FLIGHT = 4  # messages; their memory is 2 * 4 * 64 KiB a rank
_SPINS = 50  # polls, about 1 us, before a waiting rank yields its processor; 2000 took a busy machine 10 times as long
_SLICE_US = 100_000  # of waiting, after which Python handles signals and checks for dead ranks

_DONE, _WAITING, _MISMATCH, _FULL = range(4)


@functools.cache
def functions() -> dict[str, Any] | str:
    """C++ functions by name, or why there are none."""
    library = native.library()
    if isinstance(library, str):
        return library
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    signatures = {
        "bytes": (number, [number] * 3),
        "join": (pointer, [pointer, *[number] * 5]),
        "leave": (None, [pointer]),
        "send": (None, [pointer, pointer, *[number] * 4, pointer]),
        "receive": (number, [pointer, number, pointer, *[number] * 3]),
        "sum": (None, [pointer, pointer, *[number] * 3, pointer]),
        "has_sent": (number, [pointer, number, number]),
        "label": (None, [pointer, number, number, pointer]),
    }
    found: dict[str, Any] = {}
    for name, (result, arguments) in signatures.items():
        found[name] = getattr(library, f"syncbn_one_shot_{name}")
        found[name].restype, found[name].argtypes = result, arguments
    return found


def segment_size(world_size: int, in_flight: int = IN_FLIGHT) -> int:
    """Size in bytes of the memory that the ranks of a group share."""
    return int(_library()["bytes"](world_size, 2 * in_flight, CAPACITY))


class OneShot:
    """One-shot exchange: every rank writes to shared memory, waits for the others, and adds all in rank order.

    It takes one step for any world size, and gives the same bits on every rank for any message size. A wait has the
    group's timeout. Messages of different lengths or dtypes on the ranks are an error.

    Raises:
        DistBackendError: in `sum`, and in a pending sum's `wait`: a rank didn't send its part within the timeout, has
            ended, or has sent something else. The group can't be used any more.
    """

    name = "one_shot"

    def __init__(self, segment: Segment, group: ProcessGroup, in_flight: int = IN_FLIGHT) -> None:
        """Join the group's segment of `segment_size` bytes."""
        self._segment = segment
        self._group = weakref.ref(group)  # groups own their exchange
        self._ranks: Sequence[int] = dist.get_process_group_ranks(group)
        functions = _library()
        self._sum, self._send, self._receive = functions["sum"], functions["send"], functions["receive"]
        # Where ranks share processors, spinning would keep the awaited ranks from running.
        spins = _SPINS if group.size() <= len(os.sched_getaffinity(0)) else 0
        self._end = functions["join"](segment.address, group.rank(), group.size(), 2 * in_flight, CAPACITY, spins)
        weakref.finalize(self, functions["leave"], self._end).atexit = False
        self._unread: dict[int, _Piece] = {}  # by sequence number
        self._fault: str | None = None
        _ALL.add(self)

    def sum(self, buffer: Tensor) -> None:
        """See `Exchange`."""
        numbers = _dense(buffer)
        pieces: list[_Piece] = []
        try:
            with _shown():
                if numbers.numel() * numbers.element_size() <= CAPACITY:
                    self._post(pieces, numbers, 0, numbers.numel(), self._sum, _SLICE_US)
                else:
                    self._send_pieces(pieces, numbers)
                for piece in pieces:
                    self.finish(piece)
        except BaseException:
            _give_up(pieces)
            raise
        if numbers is not buffer:
            buffer.copy_(numbers)

    def send(self, buffer: Tensor) -> PendingOneShot:
        """See `Exchange`. With more than four messages in flight, it waits for the oldest."""
        numbers = _dense(buffer)
        pieces: list[_Piece] = []
        try:
            with _shown():
                self._send_pieces(pieces, numbers)
        except BaseException:
            _give_up(pieces)
            raise
        return PendingOneShot(self, pieces, buffer, numbers)

    def finish(self, piece: _Piece) -> None:
        """Wait until a piece is summed."""
        with piece.lock:
            waited, since = 0.0, time.monotonic()
            while not piece.done:
                self._check()
                state = self._receive(self._end, piece.sequence, piece.address, piece.count, piece.width, _SLICE_US)
                if state == _DONE:
                    piece.done = True
                    self._unread.pop(piece.sequence, None)
                elif state == _MISMATCH:
                    self._fail(self._differences(piece.sequence))
                else:
                    now = time.monotonic()
                    waited += min(now - since, 1.0)  # a process that was suspended hasn't waited
                    since = now
                    self._check_missing(piece.sequence, waited)

    def _send_pieces(self, pieces: list[_Piece], numbers: Tensor) -> None:
        """Send pieces of at most `CAPACITY` bytes; if there are too many, the first are summed meanwhile."""
        total, width = numbers.numel(), numbers.element_size()
        most = CAPACITY // width
        for begin in range(0, max(total, 1), most):
            self._post(pieces, numbers, begin, min(most, total - begin), self._send, total, begin)

    def _post(
        self, pieces: list[_Piece], numbers: Tensor, begin: int, count: int, function: Any, *arguments: int
    ) -> None:
        """Send a piece of `numbers` by a C++ function, once there is room; add it to `pieces` unless it is summed."""
        width = numbers.element_size()
        address = numbers.data_ptr() + begin * width
        waited = 0
        while True:
            self._check()
            answer = ctypes.c_int64(_FULL)
            try:
                function(self._end, address, count, width, *arguments, ctypes.byref(answer))
            finally:  # also after an exception in a signal handler: what was sent must be read
                sequence, state = divmod(answer.value, 4)
                if state in (_WAITING, _MISMATCH):
                    pieces.append(_Piece(sequence, numbers, address, count))
                    self._unread[sequence] = pieces[-1]
            if state != _FULL:
                return
            if sequence in self._unread:
                self.finish(self._unread[sequence])
            else:  # another thread will read it
                time.sleep(1e-3)
                waited += 1
                self._check_missing(sequence, waited / 1000)

    def _check(self) -> None:
        if self._fault is not None:
            raise dist.DistBackendError(self._fault)

    def _fail(self, fault: str) -> None:
        self._fault = fault
        self._check()

    def _check_missing(self, sequence: int, waited: float) -> None:
        missing = self._missing(sequence)
        ended = {rank for rank in missing if not self._segment.is_locked(rank)}
        # Check again: a rank may have sent its part and ended in between.
        if ended and (ended := ended.intersection(self._missing(sequence))):
            self._fail(f"{self._named(sorted(ended))} ended, or left the process group, before a sum over {self._all}")
        group = self._group()
        limit = compat.group_timeout(group).total_seconds() if group is not None else 0.0
        if waited > limit:
            self._fail(
                f"{self._named(missing)} sent nothing to a sum over {self._all} within the group's time-out of "
                f"{limit:g} s: look what it does, or give init_process_group() a longer timeout"
            )

    def _missing(self, sequence: int) -> list[int]:
        has_sent = _library()["has_sent"]
        return [rank for rank in range(len(self._ranks)) if not has_sent(self._end, sequence, rank)]

    def _differences(self, sequence: int) -> str:
        label = (ctypes.c_int64 * 3)()
        parts = []
        for number, rank in enumerate(self._ranks):
            _library()["label"](self._end, sequence, number, label)
            total, begin, width = label
            parts.append(f"rank {rank} {total} of float{8 * width}" + f", at {begin}" * bool(begin))
        return (
            f"ranks sent different numbers of values to one sum: {'; '.join(parts)}. Every rank must run the same "
            "layers in the same order"
        )

    def _named(self, numbers: Sequence[int]) -> str:
        ranks = ", ".join(str(self._ranks[number]) for number in numbers)
        return f"rank {ranks}" if len(numbers) == 1 else f"ranks {ranks}"

    @property
    def _all(self) -> str:
        return self._named(range(len(self._ranks)))

    def abandon(self) -> None:
        """Refuse to sum from now on, in a process forked from the rank."""
        self._fault = "a process that was forked from a rank can't sum over ranks: it isn't one of them"


class PendingOneShot:
    """A sum in progress, see `Pending`."""

    def __init__(self, exchange: OneShot, pieces: list[_Piece], buffer: Tensor, numbers: Tensor) -> None:
        """`numbers` are those of `buffer` in dense memory."""
        self._exchange, self._pieces, self._buffer, self._numbers = exchange, pieces, buffer, numbers

    def wait(self) -> None:
        """See `Pending`."""
        with _shown():
            for piece in self._pieces:
                self._exchange.finish(piece)
        if self._pieces and self._numbers is not self._buffer:
            self._buffer.copy_(self._numbers)
        self._pieces = []


class _Piece:
    """Part of a message that fits in a slot, summed in place."""

    def __init__(self, sequence: int, numbers: Tensor, address: int, count: int) -> None:
        self.sequence, self.address, self.count = sequence, address, count
        self.numbers = numbers  # owns the memory
        self.width, self.done = numbers.element_size(), False
        self.lock = threading.RLock()  # reentrant: a signal handler may wait for the piece that its thread waits for


def _give_up(pieces: list[_Piece]) -> None:
    """Read pieces, as all ranks must, without writing to their memory, which the owner may reuse."""
    for piece in pieces:
        piece.count = 0


def _library() -> dict[str, Any]:
    found = functions()
    assert not isinstance(found, str)
    return found


def _dense(buffer: Tensor) -> Tensor:
    """The buffer, or a copy, as contiguous numbers."""
    if buffer.is_contiguous() and not buffer.is_neg():
        return buffer
    return buffer.detach().resolve_neg().clone(memory_format=torch.contiguous_format)


def _shown() -> AbstractContextManager[object]:
    """Report a message to torch's profiler."""
    return torch.profiler.record_function("syncbn::one_shot") if compat.is_profiling() else _UNSEEN


def _abandon_all() -> None:
    for exchange in list(_ALL):
        exchange.abandon()


_UNSEEN = nullcontext()
_ALL: weakref.WeakSet[OneShot] = weakref.WeakSet()
os.register_at_fork(after_in_child=_abandon_all)
