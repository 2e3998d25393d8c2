"""Small networks for the tests of policies, the same on every rank."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class TwoStages(nn.Module):
    """conv, norm, relu, twice, then a classifier; (N, 2, 6, 6) -> (N, 3). `again` runs the second norm twice."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, again: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3), norm(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 5, 3, bias=False), norm(5), nn.ReLU())
        self.head = nn.Linear(5, 3)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.stem(x))
        if self.again:
            y = self.body[1](2 * y + 1)
        return self.head(y.mean(dim=(2, 3)))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Make a network with weights, statistics, scales and shifts unlike a new one's."""
    torch.manual_seed(seed)
    net = make()
    for module in net.modules():
        if hasattr(module, "running_mean") and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return net


def images(count: int, seed: int = 1) -> Tensor:
    """(count, 2, 6, 6), far from zero mean and unit variance."""
    return 3 * torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed)) + 1
