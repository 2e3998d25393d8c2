"""An option is declared once: a layer's defaults, types and bounds are those of its dataclass."""

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from torch import nn

import syncbn
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.options import Count, Positive, Range, Share, defaults, kinds, option, option_fields
from syncbn.norm.core.registry import _LAYERS, known_options, layer_modules, our_options
from syncbn.norm.core.shared_options import Shared
from syncbn.norm.core.signatures import arguments_of, takes_more
from syncbn.norm.core.tracking import TrackingNorm

OF_CODE = {"process_group", "device", "dtype"}
OF_CONFIGS = {"keras_momentum", "sync_group"}  # which `norm_layer`, and the run, turn into arguments
OURS = sorted(our_options())


@pytest.mark.parametrize("name", OURS)
def test_a_layer_has_the_options_of_its_dataclass_and_their_defaults(name: str) -> None:
    layer_modules()
    arguments = {argument.name: argument.default for argument in arguments_of(_LAYERS[name])}
    declared = defaults(our_options()[name])
    if takes_more(_LAYERS[name]):
        arguments |= {key: getattr(TrackingNorm, key) for key in Shared.__annotations__}
    assert known_options()[name] is our_options()[name]
    assert {key: value for key, value in arguments.items() if key not in OF_CODE} == {
        key: value for key, value in declared.items() if key not in OF_CONFIGS
    }
    assert ("process_group" in arguments) == ("sync_group" in declared)
    assert ("momentum" in arguments) == ("keras_momentum" in declared)


@pytest.mark.parametrize("name", OURS)
def test_every_option_has_a_line_of_help(name: str) -> None:
    for field in option_fields(our_options()[name]):
        text = field.metadata["help"]
        assert text, field.name
        assert not text.endswith("."), text
        assert text == text.strip(), text


def values_out_of_bounds(kind: Any) -> Iterator[Any]:
    """Numbers just outside the ranges of a type."""
    for member in get_args(kind) if get_origin(kind) is not Annotated else [kind]:
        for bounds in get_args(member)[1:]:
            if isinstance(bounds, Range):
                step = 1 if get_args(member)[0] is int else 1e-3
                yield from (bounds.low - step,) if bounds.low is not None else ()
                yield from (bounds.high + step,) if bounds.high is not None else ()
                yield from (bounds.above,) if bounds.above is not None else ()
                yield from (bounds.below,) if bounds.below is not None else ()
                yield from (math.nan,) if step != 1 else ()


WRONG = [
    (name, key, value)
    for name in OURS
    for key, kind in kinds(our_options()[name]).items()
    if key != "sync_group"
    for value in values_out_of_bounds(kind)
]


@pytest.mark.parametrize(("name", "option", "value"), WRONG)
def test_a_layer_refuses_what_is_out_of_the_declared_bounds(name: str, option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"momentum|{option}"):
        syncbn.norm_layer(name, **{option: value})(8)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("value", ["yes", [1], object()], ids=["text", "list", "object"])
def test_a_layer_refuses_values_of_other_types(name: str, value: object) -> None:
    for key in set(defaults(our_options()[name])) - OF_CONFIGS:
        with pytest.raises((TypeError, ValueError), match=key):
            syncbn.norm_layer(name, **{key: value})(8)


@dataclass
class Options:
    """Options of nothing."""

    count: Count = option(3, "a number")
    rate: Positive | None = option(0.5, "a number or nothing")
    share: Share = option(0.1, "of all", refusal="a share lies between 0 and 1, got {value}")
    mode: Literal["fast", "slow"] = option("fast", "how")
    way: Literal["a", "b", "c"] = option("a", "which")
    size: Count | Literal["all"] = option("all", "how many")
    flag: bool = option(True, "whether")
    names: list[str] | None = option(None, "which ones")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"count": 0}, ValueError, "count must be at least 1, got 0; 3 is the usual value"),
        ({"count": 2.0}, TypeError, "count must be an int, got 2.0"),
        ({"count": True}, TypeError, "count must be an int, got True"),
        ({"rate": 0}, ValueError, "rate must be greater than 0 or None, got 0; 0.5 is the usual value"),
        ({"rate": "0.5"}, TypeError, "rate must be a number or None, got '0.5'"),
        ({"share": 1}, ValueError, "a share lies between 0 and 1, got 1"),
        ({"mode": "fats"}, ValueError, "mode must be 'fast' or 'slow', got 'fats'"),
        ({"mode": None}, TypeError, "mode must be 'fast' or 'slow', got None"),
        ({"way": "d"}, ValueError, "way must be one of 'a', 'b', 'c', got 'd'"),
        ({"size": 0}, ValueError, "size must be at least 1 or 'all', got 0"),
        ({"size": "some"}, ValueError, "size must be at least 1 or 'all', got 'some'"),
        ({"size": 1.5}, TypeError, "size must be an int or 'all', got 1.5"),
        ({"flag": "no"}, TypeError, "flag must be True or False, got 'no'"),
        ({"names": "a"}, TypeError, "names must be a list of a text or None, got 'a'"),
    ],
    ids=str,
)
def test_a_refusal_says_what_was_got_and_what_is_allowed(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        check_arguments(Options, given)
    assert str(refused.value) == message


def test_numbers_of_other_libraries_are_numbers() -> None:
    for count, rate in ((np.int64(3), np.float32(0.5)), (torch.tensor(3), torch.tensor(0.5))):
        check_arguments(
            Options, {"count": count, "rate": rate, "flag": np.True_, "names": ("a", "b"), "other": object()}
        )
    check_arguments(Options, {"flag": 1})
    layer = syncbn.norm_layer("group", groups=np.int64(4), eps=np.float32(1e-3))(8)
    assert layer(torch.randn(2, 8, 3)).shape == (2, 8, 3)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (3, 3), (8, 8), (31, 31), (32, 32), (33, 11), (37, 1), (48, 24), (64, 32), (100, 25)],
)
def test_group_norm_by_itself_takes_the_largest_divisor_up_to_32(channels: int, groups: int) -> None:
    layer = syncbn.norm_layer("group")(channels)
    assert layer.num_groups == groups
    x = torch.randn(2, channels, 5)
    torch.testing.assert_close(layer(x), nn.functional.group_norm(x, groups))


def test_a_model_of_any_widths_is_converted_to_group_norm() -> None:
    widths = (3, 7, 12, 34, 96)
    model = nn.Sequential(*(nn.BatchNorm1d(width) for width in widths))
    syncbn.convert(model, "group")
    assert [norm.num_groups for norm in model] == [3, 7, 12, 17, 32]


def test_the_signature_shows_the_values() -> None:
    shown = str(inspect.signature(syncbn.norm.GroupNorm))
    shown = shown.replace("Union[int, Literal['auto']]", "int | Literal['auto']")  # before Python 3.14
    assert "groups: int | Literal['auto'] = 'auto', eps: float = 1e-05" in shown


@pytest.mark.parametrize("name", [name for name in OURS if "momentum" in defaults(our_options()[name])])
def test_an_argument_that_no_layer_has_is_refused(name: str) -> None:
    layer_modules()
    with pytest.raises(TypeError, match="unexpected keyword argument 'momentun'"):
        _LAYERS[name](8, momentun=0.1)


@pytest.mark.parametrize("name", syncbn.available_norms())
@pytest.mark.parametrize("channels", [np.int64(8), torch.tensor(8)])
def test_a_number_of_channels_of_another_library(name: str, channels: Any) -> None:
    """As networks with computed widths give it to torch's layers."""
    layer, usual = (syncbn.norm_layer(name)(each) for each in (channels, 8))
    assert repr(layer) == repr(usual)
    assert {key: value.shape for key, value in layer.state_dict().items()} == {
        key: value.shape for key, value in usual.state_dict().items()
    }
    for attribute in ("num_features", "num_channels", "num_groups"):
        assert type(getattr(layer, attribute, 8)) is int
    assert type(syncbn.convert(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(channels)), name)[1]) is type(usual)
