"""Every kind of mistake in plain data gets one line with the key and the allowed values."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from syncbn.norm.core.options import Range, mistakes


@dataclass
class Inner:
    flag: bool = True


@dataclass
class Thing:
    size: Annotated[int, Range(low=1)]
    rate: Annotated[float, Range(above=0, below=1)] = 0.5
    mode: Literal["fast", "slow"] | None = None
    names: list[str] | None = None
    inner: Inner | None = None


def test_right_data_has_no_mistakes() -> None:
    data = {"size": 3, "rate": 0.9, "mode": "slow", "names": ["a"], "inner": {"flag": False}}
    assert mistakes(data, Thing) == []
    assert mistakes({"size": 1, "mode": None, "inner": None}, Thing) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"size": 0}, "t.size: expected an integer at least 1, got 0"),
        ({"size": "3"}, "t.size: expected an integer at least 1, got '3'"),
        ({"size": True}, "t.size: expected an integer at least 1, got True"),
        ({"size": 1.5}, "t.size: expected an integer at least 1, got 1.5"),
        ({"rate": 1}, "t.rate: expected a number above 0 and below 1, got 1"),
        ({"mode": "fats"}, "t.mode: got 'fats'; did you mean 'fast'? allowed: fast, slow"),
        ({"names": "a"}, "t.names: expected a list of a text or null, got 'a'"),
        ({"inner": {"flag": 1}}, "t.inner: expected a group of keys or null, got {'flag': 1}"),
        ({"sise": 1}, "t.sise: no such key; did you mean 'size'? allowed: inner, mode, names, rate, size"),
    ],
)
def test_a_mistake_names_the_key_and_what_is_allowed(change: dict[str, Any], line: str) -> None:
    assert mistakes({"size": 1, **change}, Thing, "t") == [line]


def test_all_mistakes_are_told_at_once() -> None:
    assert len(mistakes({"rate": 2, "mode": 1}, Thing)) == 3  # and the missing size
