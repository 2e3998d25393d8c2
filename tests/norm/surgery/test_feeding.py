"""The convolution that feeds a norm, and the activation after it, in models of various styles."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syncbn
from syncbn.norm.surgery.fusible import activations_after
from syncbn.norm.surgery.graph import Graph
from syncbn.norm.surgery.record import record
from syncbn.norm.surgery.symbolic import symbolic

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class SamePadding(nn.Conv2d):
    """A convolution that pads by itself, as in effdet."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, self.padding)


class Standardized(nn.Conv2d):
    """A convolution whose weights have mean 0."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Scaled(nn.Conv2d):
    """A convolution with one more operation."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 2 * weight, bias)


class Named(nn.Conv2d):
    """A convolution subclass without changes."""


def of(conv: nn.Module) -> nn.Module:
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU())


@pytest.mark.parametrize("by_example", [True, False])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: SamePadding(3, 4, 2), "forward of its own|conv2d"),
        (lambda: Standardized(3, 4, 3), "forward of its own|conv2d"),
        (lambda: Scaled(3, 4, 3), "forward of its own|conv2d"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5)), "comes from a Dropout"),
    ],
)
def test_cross_iteration_goes_without_what_it_cannot_look_into(
    make: Callable[[], nn.Module], reason: str, by_example: bool
) -> None:
    example = {"example_input": X} if by_example else {}
    with pytest.warns(UserWarning, match=reason):
        model = syncbn.convert(of(make()), "cross_iteration", window=3, **example)
    for _ in range(4):
        model(X).sum().backward()


@pytest.mark.parametrize("conv", [Named(3, 4, 3), nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")])
def test_cross_iteration_takes_convolutions_of_other_names(conv: nn.Module) -> None:
    model = syncbn.convert(of(conv), "cross_iteration", window=3, example_input=X)
    assert model[1].is_attached
    for _ in range(4):
        model(X).sum().backward()


def test_a_hook_that_changes_stands_between() -> None:
    model = of(nn.Conv2d(3, 4, 3))
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.warns(UserWarning, match=r"its input comes from mul\(\), which is no module's output"):
        syncbn.convert(model, "cross_iteration", window=3, example_input=X)


def test_arguments_by_position_and_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = of(nn.Conv2d(3, 4, 3))

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.net(x) * scale if x.shape[0] > 1 else x

    for example in ((X, torch.ones(1)), {"x": X, "scale": torch.ones(1)}):
        assert syncbn.convert(Two(), "cross_iteration", example_input=example).net[1].is_attached


@torch.jit.script
def scripted_relu(x: Tensor) -> Tensor:
    return torch.relu(x)


class After(nn.Module):
    """A norm, and an operation on its output."""

    def __init__(self, after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.after = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.norm(self.conv(x)))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (F.relu, 0.0),
        (lambda y: F.leaky_relu(y, 0.3, inplace=True), 0.3),
        (lambda y: F.relu(y.add_(1.0 * y.mean())), "used 2 times"),
        (lambda y: F.relu(y.add_(torch.ones_like(y))), "used 2 times"),
        (lambda y: F.relu(y.add_(torch.ones(2, 4, 4, 4))), 0.0),
        (scripted_relu, "goes into relu, which isn't"),  # a script gets the tensor instead of the deferred one
        (lambda y: F.relu(y) + float(y.detach().numpy().mean()), "used"),
        (lambda y: (F.relu(y), y), "returns its output, or keeps it"),
        (lambda y: F.relu(y.view(-1)), "used 2 times"),
        (lambda y: F.relu(F.dropout(y, training=False)), "used|goes into dropout"),
    ],
)
def test_the_activation_after_a_norm(after: Callable[[Tensor], Any], expected: Any) -> None:
    model = After(after)
    found = activations_after(model, [model.norm], X)[model.norm]
    if isinstance(expected, float):
        assert found == expected
    else:
        assert any(part in str(found) for part in expected.split("|")), found
    converted = syncbn.convert(model, "sync", fuse_activation=True, example_input=X)
    assert converted.norm.fuse_activation == isinstance(expected, float)
    converted(X)


def test_a_symbolic_graph_says_what_a_recorded_one_does() -> None:
    """As far as modules go: names, numbers of calls, and the source of each input."""
    shared = nn.ReLU(inplace=True)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity(), nn.BatchNorm2d(4), shared, nn.Conv2d(4, 4, 1), shared)

    def calls(graph: Graph) -> list[tuple[str, int, str | None]]:
        found = []
        for call in graph.calls:
            if call.name and not isinstance(call.module, nn.Identity):
                giver = graph.giver(call.inputs[0], call.start)
                source = None if giver is None else graph.returned_by(giver, call.inputs[0])
                found.append((call.name, call.index, None if source is None else source.name))
        return found

    assert calls(symbolic(model)) == calls(record(model, X))
    assert calls(symbolic(model))[-1] == ("3", 1, "4")
