"""Work of a backward pass that can wait, and is done while a message is under way.

A backward pass has its own backlog, which ends with it: work that a failed pass left is not done in the next one. Work
is kept by what needs its result, so that a backlog keeps nothing alive.
"""

import threading
import weakref
from collections import deque

import torch

from syncbn.norm.core import compat


class Work:
    """A computation that is done once, when it is convenient or when its result is needed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._surroundings = _surroundings(device)

    def fits_now(self) -> bool:
        """Whether it would be computed as where it was put off.

        The current stream may be another one than that of its tensors. A message may also be that of a forward pass
        which a hook makes or checkpointing repeats, with an autocast or inference mode of its own, or with modes that
        answer for operations.
        """
        return self._surroundings == _surroundings(self._device)

    def do(self) -> None:
        """Compute, unless that has been done."""
        raise NotImplementedError


class _Backlog(threading.local):
    """That of the thread's current backward pass. Each device's part of a pass runs in one thread."""

    def __init__(self) -> None:
        self.task = -1
        self.waiting: deque[weakref.ref[Work]] = deque()


_backlog = _Backlog()


def put_off(work: Work) -> None:
    """Do `work` while the next message of this backward pass is under way, if it still exists by then."""
    task = compat.backward_pass()
    if task != _backlog.task:  # the pass before has ended, or this one runs inside it
        _backlog.task, _backlog.waiting = task, deque()
    _backlog.waiting.append(weakref.ref(work))


def has_work() -> bool:
    """Whether this backward pass has put something off."""
    return bool(_backlog.waiting) and _backlog.task == compat.backward_pass()


def work_off() -> None:
    """Do what this backward pass has put off, which `has_work` has told."""
    waiting, _backlog.waiting = _backlog.waiting, deque()
    for reference in waiting:
        work = reference()
        if work is not None and work.fits_now():
            work.do()
        elif work is not None:
            _backlog.waiting.append(reference)


def _surroundings(device: torch.device) -> tuple[object, ...]:
    kind = device.type
    return (
        torch.cuda.current_stream(device) if kind == "cuda" else None,
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
        torch.is_inference_mode_enabled(),  # whose tensors stay apart
        compat.dispatch_modes(),
    )
