"""Layers of other dimensions."""

from typing import Any

from torch import Tensor, nn

from tests.norm.fusion.overlap_scenarios.registry import scenario
from tests.norm.fusion.overlap_steps import Make, grads, images, several_steps


@scenario()
def one_dimension(make: Make) -> list[Tensor]:
    model = make(
        lambda norm: nn.Sequential(nn.Conv1d(3, 4, 3), norm(4), nn.ConvTranspose1d(4, 4, 3), norm(4), nn.Linear(64, 2))
    )
    for number in range(2):
        model.zero_grad()
        model(images(number).flatten(2)).square().sum().backward()
    return grads(model)


@scenario()
def three_dimensions(make: Make) -> list[Tensor]:
    model = make(
        lambda norm: nn.Sequential(nn.Conv3d(1, 4, 2), norm(4), nn.ConvTranspose3d(4, 2, 2), nn.Conv3d(2, 2, 1))
    )
    for number in range(2):
        model.zero_grad()
        model(images(number).unsqueeze(1)).square().sum().backward()
    return grads(model)


class Rows(nn.Module):
    """Linear layers with norms between them."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(192, 192) for _ in range(3))
        self.norms = nn.ModuleList(norm(192) for _ in range(2))
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = norm(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](x.flatten(1))
        for norm, layer in zip(self.norms, self.layers[1:], strict=True):
            y = layer(norm(y))
        return self.last(self.conv(y.view_as(x)))


@scenario()
def rows(make: Make) -> list[Tensor]:
    model = make(Rows)
    return several_steps(model, 2)
