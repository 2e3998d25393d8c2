"""Steps with and without overlap on one rank of a group: what `Ranks.run` sends to its processes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import syncbn
from syncbn.norm.core import compat, exchange
from syncbn.norm.surgery.overlap import overlap_messages

Make = Callable[..., nn.Module]


class Block(nn.Module):
    """A residual block with a shortcut of its own."""

    def __init__(self, norm: Any, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm2 = norm(2 * width)
        self.downsample = nn.Sequential(nn.Conv2d(width, 2 * width, 1, stride=2, bias=False), norm(2 * width))
        self.act = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.conv1(x)))
        return self.act(self.norm2(self.conv2(y)) + self.downsample(x))


class Net(nn.Module):
    """Two of them, and a linear layer."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = norm(4)
        self.blocks = nn.Sequential(Block(norm, 4), Block(norm, 8))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(F.leaky_relu(self.norm(self.stem(x)), 0.1))
        return self.fc(y.mean((2, 3)))


HIDDEN = 7  # layers of `Net` after a norm


def make(overlap: bool, build: Callable[[Any], nn.Module] = Net, **options: Any) -> nn.Module:
    """A model, the same on every rank."""
    torch.manual_seed(0)
    model = build(syncbn.norm_layer("sync", overlap=overlap, **options))
    overlap_messages(model)
    return model


def images(step: int, count: int = 4) -> Tensor:
    """This rank's."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(100 * step + rank))


def grads(model: nn.Module) -> list[Tensor]:
    """Those that there are."""
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def step(model: nn.Module, number: int, loss: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """A backward pass over fresh gradients."""
    model.zero_grad()
    y = model(images(number))
    (y.square().sum() if loss is None else loss(y)).backward()
    return grads(model)


def several_steps(model: nn.Module, count: int = 3) -> list[Tensor]:
    """The gradients of each."""
    return [grad for number in range(count) for grad in step(model, number)]


class Events(compat.TorchDispatchMode):
    """The messages and gradients of a backward pass, in the order in which they come."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.seen += [name for name, needed in zip(("dx", "dW"), args[-1], strict=False) if needed]
        return func(*args, **(kwargs or {}))

    @property
    def hidden(self) -> int:
        """The weight gradients of convolutions that are computed while a message is under way."""
        under_way, count = False, 0
        for event in self.seen:
            under_way = event == "send" or (under_way and event != "wait")
            count += under_way and event == "dW"
        return count


class Told:
    """An exchange that tells what it is asked for."""

    name = "told"

    def __init__(self, inner: exchange.Exchange, events: Events) -> None:
        self.inner, self.events = inner, events

    def sum(self, buffer: Tensor) -> None:
        self.events.seen.append("sum")
        self.inner.sum(buffer)

    def send(self, buffer: Tensor) -> Any:
        self.events.seen.append("send")
        pending, events = self.inner.send(buffer), self.events

        class Pending:
            def wait(self) -> None:
                events.seen.append("wait")
                pending.wait()

        return Pending()


@contextmanager
def watched() -> Iterator[Events]:
    """What happens meanwhile."""
    group = dist.group.WORLD
    assert group is not None
    events = Events()
    inner = exchange.exchange_for(group, torch.zeros(1, dtype=torch.float64))
    exchange.use(Told(inner, events), group)
    try:
        with events:
            yield events
    finally:
        exchange.use(inner, group)


def assert_same(with_overlap: list[Tensor], without: list[Tensor]) -> None:
    """Bit by bit."""
    assert len(with_overlap) == len(without) > 0
    for place, (got, target) in enumerate(zip(with_overlap, without, strict=True)):
        assert not target.isnan().any()
        assert got.dtype == target.dtype
        assert got.stride() == target.stride(), (place, got.shape, got.stride(), target.stride())
        assert torch.equal(got, target)


def compare(scenario: Callable[..., list[Tensor]], *args: Any, hidden: bool | None = True, **options: Any) -> None:
    """Run a scenario with and without overlap on models that are the same otherwise.

    Args:
        scenario: of a function that makes the model; returns tensors.
        args: for it.
        hidden: whether weight gradients must have been hidden, or must not; None: don't watch, which compilers mind.
        options: of the norms.
    """
    results = []
    for overlap in (True, False):

        def made(build: Callable[[Any], nn.Module] = Net, overlap: bool = overlap) -> nn.Module:
            return make(overlap, build, **options)

        if hidden is None:
            results.append(scenario(made, *args))
            continue
        with watched() as events:
            results.append(scenario(made, *args))
        if overlap:
            assert (events.hidden > 0) == hidden, events.seen
        else:
            assert events.hidden == 0
            assert "send" not in events.seen
    assert_same(*results)
