"""Norms that other packages register: by a dataclass of options, or by their signature."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
import torch
from torch import Tensor, nn

import syncbn
from syncbn.norm.core.options import Positive, Range, defaults, kinds, mistakes, option
from syncbn.norm.core.registry import _LAYERS, _OPTIONS, known_options, register
from syncbn.run.describe import rows_of

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
    expected = {"factor": 0.5, "mode": "half", "times": 1, "group": None, "unsaid": 2, "sizes": (1, 2)}
    assert defaults(options) == expected | {"sync_group": "world"}
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


# Registrations by users, and problems of other registries: mmdetection#3249, tensorpack#1125.


@pytest.fixture
def guest() -> Iterator[Any]:
    """`register` under the name "guest", which is free again afterwards."""
    yield lambda layer, options=None: register("guest", options)(layer)
    for known in (_LAYERS, _OPTIONS):
        known.pop("guest", None)


def test_a_layer_of_torch_as_it_is(guest: Any) -> None:
    guest(nn.BatchNorm2d)
    assert kinds(known_options()["guest"])["momentum"] == float | None
    assert mistakes({"momentum": None, "eps": 1e-3, "keras_momentum": 0.9}, known_options()["guest"]) == []
    assert syncbn.norm_layer("guest", keras_momentum=0.75)(3).momentum == 0.25
    assert type(syncbn.convert(nn.BatchNorm1d(3, eps=0.5), "guest")) is nn.BatchNorm2d


def test_a_partial_of_a_layer(guest: Any) -> None:
    guest(functools.partial(nn.GroupNorm, 2))
    layer = syncbn.norm_layer("guest", affine=False)(6)
    assert (layer.num_groups, layer.num_channels, layer.affine) == (2, 6, False)
    assert mistakes({"eps": "a"}, known_options()["guest"]) == ["eps: expected a number, got 'a'"]


def test_a_layer_that_hands_everything_on(guest: Any) -> None:
    class Passing(nn.BatchNorm2d):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    guest(Passing)
    assert syncbn.norm_layer("guest", eps=0.5)(3).eps == 0.5
    with pytest.raises(ValueError, match="no option 'epz'; did you mean 'eps'"):
        syncbn.norm_layer("guest", epz=0.5)


def test_a_layer_derived_from_ours(guest: Any) -> None:
    class Scaled(syncbn.SyncBatchNorm):
        def __init__(self, num_features: int, scale: float = 2.0, **options: Any) -> None:
            super().__init__(num_features, **options)
            self.scale = scale

    guest(Scaled)
    declared = defaults(known_options()["guest"])
    assert (declared["scale"], declared["memory"], declared["sync_group"]) == (2.0, "keep", "world")
    layer = syncbn.norm_layer("guest", scale=3.0, eps=0.5)(4)
    assert (layer.scale, layer.eps) == (3.0, 0.5)


def test_a_function_with_defaults_and_without_annotations(guest: Any) -> None:
    guest(lambda channels, groups=1, eps=1e-5: nn.GroupNorm(groups, channels, eps=eps))
    assert syncbn.norm_layer("guest", groups=2)(4).num_groups == 2
    assert kinds(known_options()["guest"]) == {"groups": float, "eps": float}


def test_a_cell_of_a_notebook_that_is_run_again(guest: Any) -> None:
    def cell(factor: float) -> type:
        class Halving(nn.Identity):
            def __init__(self, num_features: int, by: float = factor) -> None:
                super().__init__()
                self.by = by

        return Halving

    guest(cell(0.5))
    guest(cell(0.25))  # the same code, after a change
    assert syncbn.norm_layer("guest")(3).by == 0.25
    assert defaults(known_options()["guest"]) == {"by": 0.25}
    with pytest.raises(ValueError, match=r"registered already, by .*Halving"):
        guest(Pixel)


def test_a_module_whose_import_failed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guest: Any) -> None:
    """The second failure has the same message as the first, despite the name that the first left behind."""
    (tmp_path / "half_a_guest.py").write_text(
        "from torch import nn\nfrom syncbn.norm import register\n"
        "@register('guest')\nclass Half(nn.Identity):\n    def __init__(self, num_features): super().__init__()\n"
        "import no_such_thing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
            importlib.import_module("half_a_guest")


@dataclass
class Other:
    """Options with a default that differs from the layer's."""

    eps: float = 1e-5


@dataclass
class Wider:
    """Options with one that the layer doesn't have."""

    epsilon: float = 1e-8


@dataclass
class Named:
    """Options with a key that configs have already."""

    name: str = "x"


@dataclass
class Unstorable:
    """Options with a default that a config can't have."""

    eps: Any = nn.ReLU


@dataclass
class Unreadable:
    """Options with a type that doesn't exist at run time."""

    eps: ProcessGroup | None = None


class Strict(nn.Identity):
    def __init__(self, num_features: int, eps: float = 1e-8) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (Other, ValueError, "Other.eps is 1e-05 there and 1e-08 in the signature; write eps=Other.eps"),
        (Wider, ValueError, "Wider.epsilon: the layer has no such argument; it has eps"),
        (Named, ValueError, "Named.name: a config's norm.name is the norm's own"),
        (Unstorable, ValueError, "Unstorable.eps: a config can't hold the default <class 'torch.nn"),
        (Unreadable, TypeError, "the types of Unreadable can't be read: NameError"),
        ({"eps": 1e-8}, TypeError, "options must be a dataclass, got {'eps': 1e-08}"),
        (Other(), TypeError, "options must be a dataclass, got Other"),
    ],
    ids=str,
)
def test_options_that_are_none(guest: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        guest(Strict, options)
    assert "guest" not in syncbn.available_norms()


@dataclass
class Bare:
    eps: float = 1e-8


def test_a_plain_dataclass_is_enough(guest: Any) -> None:
    guest(Strict, Bare)
    assert rows_of(known_options()["guest"])[0][:3] == ("eps", "a number", "1e-8")
    assert mistakes({"eps": None}, known_options()["guest"]) == ["eps: expected a number, got None"]
