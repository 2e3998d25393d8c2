"""The same layer several times in a step."""

from typing import Any

from torch import Tensor, nn

from tests.norm.fusion.overlap_scenarios.registry import scenario
from tests.norm.fusion.overlap_steps import Make, several_steps


class Shared(nn.Module):
    """One convolution after three norms, and twice after the last; one norm twice."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList(norm(3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm in (*self.norms, self.norms[0]):
            x = self.conv(norm(x).relu())
        return self.conv(x)


@scenario()
def shared(make: Make) -> list[Tensor]:
    model = make(Shared)
    return several_steps(model, 3)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.convs[1].weight = self.convs[0].weight
        self.norms = nn.ModuleList(norm(3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(norm(x))
        return x


@scenario()
def tied(make: Make) -> list[Tensor]:
    model = make(Tied)
    return several_steps(model, 2)


class Turning(nn.Module):
    """Another order at each call."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(norm(3) for _ in range(3))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for number in range(self.calls % 2 + 1, 3):
            place = (number + self.calls) % 3
            x = self.convs[place](self.norms[number](x))
        return x


@scenario()
def turning(make: Make) -> list[Tensor]:
    model = make(Turning)
    return several_steps(model, 7)
