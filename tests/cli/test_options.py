"""`syncbn options`: lists of choices and of their options."""

import pytest

from syncbn.cli.options import listing
from syncbn.run.errors import UserError


def test_without_a_choice_all_are_named() -> None:
    lines = listing([]).splitlines()
    (norms,) = (line for line in lines if line.startswith("norm "))
    assert "group, instance, layer" in norms
    assert not [line for line in lines if line.startswith("hydra")]


def test_a_norms_options_are_listed_with_their_bounds() -> None:
    lines = listing(["norm=ghost"]).splitlines()
    assert lines[2].startswith("norm: Ghost batch normalization (Hoffer et al. 2017)")
    assert any("ghost_batch_size=32 " in line and "samples in a ghost batch" in line for line in lines)
    assert "an integer at least 1" in listing(["norm=ghost"])
    assert "no options" in listing(["norm=none"])


def test_a_choices_values_are_shown_beside_the_defaults() -> None:
    said = listing(["model=resnet18", "callbacks=default"])
    assert "width=16 " in said
    assert "default 64)" in said
    assert "callbacks.watchdog: Stops all ranks" in said
    assert "syncbn.training" not in said


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("norm=gruop", r"norm=gruop: no such choice; did you mean 'group'\?"),
        ("nrom=group", r"nrom=group: expected group=choice, .*did you mean 'norm'\?"),
        ("norm", r"norm: which one\? norm=adaptive, norm=batch"),
    ],
)
def test_a_mistake_is_answered(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        listing([word])
