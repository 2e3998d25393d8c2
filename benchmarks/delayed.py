"""An exchange whose messages take at least a given time: a slow network, on one machine."""

import time

import torch.distributed as dist
from torch import Tensor

from syncbn.norm.core.exchange import Exchange, Pending


class Delayed:
    """Sums as another exchange does, and hands each sum over no earlier than `seconds` after it was sent.

    A rank that waits sleeps, so that other ranks of its processor can work, as they could if a network were the cause.
    """

    name = "delayed"

    def __init__(self, inner: Exchange, seconds: float) -> None:
        self.inner = inner
        self.seconds = seconds
        self.messages = 0

    def sum(self, buffer: Tensor) -> None:
        """Put the sum of all ranks' buffers in the place of each."""
        self.send(buffer).wait()

    def send(self, buffer: Tensor) -> Pending:
        """Begin the same."""
        self.messages += 1
        return _Pending(self.inner.send(buffer), time.monotonic() + self.seconds)


class _Pending:
    def __init__(self, inner: Pending, due: float) -> None:
        self._inner = inner
        self._due = due

    def wait(self) -> None:
        self._inner.wait()
        time.sleep(max(0.0, self._due - time.monotonic()))


def world() -> dist.ProcessGroup:
    """The default group."""
    group = dist.group.WORLD
    assert group is not None
    return group
