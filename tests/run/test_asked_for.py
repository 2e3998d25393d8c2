"""What a guest's network or task asks for by name, and what has that name by chance."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional

import pytest
from omegaconf import DictConfig
from torch import nn

from syncbn.run import construct
from syncbn.run.network import image_size_for


def none_declared(norm): ...
def by_none(norm=None): ...
def by_class(norm=nn.BatchNorm2d): ...
def by_function(norm: Callable[..., nn.Module]): ...
def by_kind(norm: type[nn.Module]): ...
def by_either(norm: str | Callable[..., nn.Module] = "bn"): ...
def by_any(norm: Any = "bn"): ...
def optional(norm: nn.Module | None = None): ...
def later(norm: "nn.Module"): ...
def nowhere(norm: "Missing" = None): ...  # type: ignore[name-defined]  # noqa: F821


def text(norm: str): ...
def text_by_default(norm="bn"): ...
def text_or_none(norm: Optional[str] = None): ...  # noqa: UP045
def switch(norm: bool = True): ...
def switch_by_default(norm=False): ...
def choice(norm: Literal["bn", "gn"] | None = None): ...
def group(norm: dict[str, Any] | None = None): ...
def bounded(norm: Annotated[int, "at least 1"] = 3): ...
def text_by_later(norm: "str | None" = None): ...
def another(width: int): ...


ASKS = [none_declared, by_none, by_class, by_function, by_kind, by_either, optional, later, nowhere]
MEANS_ANOTHER = [
    *(text, text_by_default, text_or_none, switch, switch_by_default, choice, group, bounded, text_by_later, by_any),
    another,
]


@pytest.mark.parametrize(
    ("function", "expected"), [*((each, True) for each in ASKS), *((each, False) for each in MEANS_ANOTHER)]
)
def test_a_plain_value_of_the_name_asks_for_no_object(
    function: Callable[..., Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCBN_ALLOWED_PACKAGES", __name__.partition(".")[0])
    node = DictConfig({"_target_": f"{__name__}.{function.__name__}"})
    assert construct.asks_for("norm", "model", node) is expected
    assert not construct.asks_for("norm", "model", DictConfig({**node, "norm": "theirs"}))


def one_number(image_size: int): ...
def one_number_by_default(image_size=8): ...
def one_or_none(image_size: int | None = None): ...
def one_or_two(image_size: int | tuple[int, int] = 8): ...
def not_said(image_size): ...


@pytest.mark.parametrize(
    ("function", "size", "expected"),
    [
        (one_number, [6, 6], 6),
        (one_number_by_default, (6, 6), 6),
        (one_or_none, [6, 6], 6),
        (one_number, 6, 6),
        (one_or_two, [6, 6], (6, 6)),
        (not_said, [6, 6], (6, 6)),
        (not_said, [6, 8], (6, 8)),
        (one_number, None, None),
    ],
)
def test_a_size_is_given_as_it_is_asked_for(function: Callable[..., Any], size: Any, expected: Any) -> None:
    parameter = inspect.signature(function, eval_str=True).parameters["image_size"]
    assert image_size_for(parameter, size) == expected


def test_images_that_are_not_square_have_no_one_size() -> None:
    with pytest.raises(ValueError, match=r"image_size is one number here, and the data's images have 6 x 8: give it"):
        image_size_for(inspect.signature(one_number).parameters["image_size"], [6, 8])
