"""Differences between ranks are reported at once, instead of hanging or training on."""

from collections.abc import Callable

import pytest

from syncbn.training import RanksAgree
from tests.ranks import Ranks
from tests.training import disagreeing_ranks

pytestmark = pytest.mark.distributed
Pool = Callable[[int], Ranks]


@pytest.mark.parametrize(
    ("kind", "every_n_steps", "message"),
    [
        ("settings", None, "disagree on norm.name: rank 1 has 'batch', rank 0 has 'sync'"),
        ("layers", None, "disagree on layer net.2: rank 1 has SyncBatchNorm, rank 0 has Flatten"),
        (
            "channels",
            None,
            "disagree on parameter net.0.weight: rank 1 has (5, 1, 3, 3) float32, rank 0 has (4, 1, 3, 3)",
        ),
        ("parameter", 1, "disagree in epoch 1 after batch 2 on parameter net.0.weight: rank 1 has one of norm"),
        ("parameter", 3, "disagree in epoch 1 after batch 3 on parameter net.0.weight"),
        ("buffer", 1, "disagree in epoch 1 after batch 2 on buffer net.1.running_var"),
        ("unsynchronized", 1, "disagree in epoch 1 after batch 1 on buffer net.1.running_mean"),
    ],
)
def test_the_first_thing_that_differs_is_named_on_every_rank(
    ranks: Pool, kind: str, every_n_steps: int | None, message: str
) -> None:
    for said in ranks(2).run(disagreeing_ranks.fit, kind, every_n_steps):
        assert message in said


@pytest.mark.parametrize(("kind", "every_n_steps"), [("none", 1), ("parameter", None), ("unsynchronized", None)])
def test_equal_ranks_train_on_and_values_are_compared_on_demand(
    ranks: Pool, kind: str, every_n_steps: int | None
) -> None:
    assert ranks(2).run(disagreeing_ranks.fit, kind, every_n_steps) == ["agreed", "agreed"]


def test_a_wrong_argument_says_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be at least 1 or None, got 0"):
        RanksAgree(every_n_steps=0)
