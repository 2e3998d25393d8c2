"""Norms that other packages register: by a dataclass of options, or by their signature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
import torch
from torch import Tensor, nn

import syncbn
from syncbn.norm.core.options import Positive, Range, defaults, kinds, mistakes, option
from syncbn.norm.core.registry import _LAYERS, _OPTIONS, known_options, register

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass
class PixelOptions:
    """Every position by the root mean square of its channels."""

    eps: Positive = option(1e-8, "added to the mean square")


class Pixel(nn.Module):
    def __init__(self, num_features: int, eps: float = PixelOptions.eps, **more: Any) -> None:
        super().__init__()
        self.num_features, self.eps, self.more = num_features, eps, more

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + self.eps)


class Plain(nn.Module):
    """Halves what comes in.

    And no more.
    """

    def __init__(
        self,
        num_features: int,
        factor: float = 0.5,
        mode: Literal["half", "all"] = "half",
        times: Annotated[int, Range(low=1)] = 1,
        group: ProcessGroup | None = None,
        activation: type[nn.Module] = nn.ReLU,
        unsaid=2,
        sizes: tuple[int, ...] = (1, 2),
        process_group: ProcessGroup | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.factor, self.times = factor, times

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.fixture
def registered() -> Iterator[None]:
    register("pixel", options=PixelOptions)(Pixel)
    register("plain")(Plain)
    yield
    for name in ("pixel", "plain"):
        del _LAYERS[name], _OPTIONS[name]


@pytest.mark.usefixtures("registered")
def test_a_guests_dataclass_says_its_options() -> None:
    assert known_options()["pixel"] is PixelOptions
    assert "pixel" in syncbn.available_norms()
    assert syncbn.norm_layer("pixel", eps=0.1)(3).eps == 0.1
    with pytest.raises(ValueError, match="norm 'pixel' has no option 'esp'; did you mean 'eps'"):
        syncbn.norm_layer("pixel", esp=0.1)


@pytest.mark.usefixtures("registered")
def test_a_signature_says_the_options_where_there_is_no_dataclass() -> None:
    options = known_options()["plain"]
    assert options.__doc__ == "Halves what comes in."
    assert defaults(options) == {
        "factor": 0.5, "mode": "half", "times": 1, "group": None, "unsaid": 2, "sizes": (1, 2),
    }  # fmt: skip
    assert kinds(options)["unsaid"] is float
    assert kinds(options)["group"] is kinds(options)["sizes"] is Any
    assert mistakes({"factor": 1, "unsaid": 0.5, "sizes": [3], "group": None}, options) == []
    assert mistakes({"times": 0, "mode": "hlaf"}, options) == [
        "mode: got 'hlaf'; did you mean 'half'? allowed: all, half",
        "times: expected an integer at least 1, got 0",
    ]
    assert syncbn.norm_layer("plain", factor=2)(3).factor == 2


@pytest.mark.usefixtures("registered")
def test_names_are_taken_once() -> None:
    for name, known in (("plain", "Plain"), ("group", "GroupNorm")):
        with pytest.raises(ValueError, match=f"{name}' is registered already, by .*{known}.*; choose another name"):
            register(name)(Pixel)


def test_an_option_without_a_default_is_required() -> None:
    class Scale(nn.Module):
        def __init__(self, num_features: int, by: float) -> None:
            super().__init__()

    register("scale")(Scale)
    try:
        assert mistakes({}, known_options()["scale"]) == ["by: missing; it is a number"]
    finally:
        del _LAYERS["scale"], _OPTIONS["scale"]
