"""Oracle of cross-iteration batch normalization: its definition in float64, one process, Jacobians by autograd."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Past(NamedTuple):
    """One earlier iteration: E[y], E[y²], their Jacobians by every parameter, and the parameters then."""

    count: int
    mean: Tensor
    square: Tensor
    mean_by: list[Tensor]
    square_by: list[Tensor]
    parameters: list[Tensor]


@dataclass
class Oracle:
    """`step` normalizes feeder(x) by the window's moments; parameters of the feeder are read when it is called."""

    feeder: nn.Module
    window: int
    eps: float = 1e-5
    momentum: float = 0.1
    burn_in: int = 0
    iterations: int = 0
    past: list[Past] = field(default_factory=list)
    running_mean: Tensor | float = 0.0
    running_var: Tensor | float = 1.0

    def step(self, x: Tensor) -> Tensor:
        parameters = {name: p.detach().double().requires_grad_() for name, p in self.feeder.named_parameters()}
        self.parameters = list(parameters.values())
        y = functional_call(self.feeder, parameters, (x,))
        samples = y.movedim(1, 0).flatten(1)
        mean, square = samples.mean(1), samples.square().mean(1)
        alone = self.window == 1 or self.iterations < self.burn_in
        self.iterations += 1
        if alone:
            total, var = mean, square - mean**2
            unbiased = var * samples.shape[1] / (samples.shape[1] - 1)
            self._track(total.detach(), unbiased.detach(), None)
            return self._normalize(y, total, var)
        means, squares, counts = [mean], [square], [samples.shape[1]]
        for past in self.past[-(self.window - 1) :]:
            deltas = [now.detach() - then for now, then in zip(self.parameters, past.parameters, strict=True)]
            carried = past.mean + _along(past.mean_by, deltas)
            means.append(carried)
            squares.append(torch.maximum(past.square + _along(past.square_by, deltas), carried**2))
            counts.append(past.count)
        self.past.append(
            Past(
                samples.shape[1],
                mean.detach(),
                square.detach(),
                _jacobian(mean, self.parameters),
                _jacobian(square, self.parameters),
                [p.detach().clone() for p in self.parameters],
            )
        )
        weights = torch.tensor(counts, dtype=torch.float64) / sum(counts)
        total = (weights[:, None] * torch.stack(means)).sum(0)
        second = (weights[:, None] * torch.stack(squares)).sum(0)
        self._track(total.detach(), None, second.detach())
        return self._normalize(y, total, second - total**2)

    def _track(self, mean: Tensor, var: Tensor | None, second: Tensor | None) -> None:
        m = self.momentum
        before, after = self.running_mean, (1 - m) * self.running_mean + m * mean
        if second is None:
            self.running_var = (1 - m) * self.running_var + m * var
        else:
            self.running_var = (1 - m) * (self.running_var + before**2) + m * second - after**2
        self.running_mean = after

    def _normalize(self, y: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (y.dim() - 2))
        return (y - mean.view(shape)) / (var.view(shape) + self.eps).sqrt()


def _jacobian(per_channel: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    rows = [torch.autograd.grad(value, parameters, retain_graph=True) for value in per_channel]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _along(jacobian: list[Tensor], deltas: list[Tensor]) -> Tensor:
    return sum((j * d).flatten(1).sum(1) for j, d in zip(jacobian, deltas, strict=True))
