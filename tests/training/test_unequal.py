"""Ranks with unequal numbers of batches train like one process, or fail at once with a message."""

from collections.abc import Callable

import pytest
import torch

from syncbn.training import ddp
from tests.ranks import Ranks
from tests.training import unequal_runs

Pool = Callable[[int], Ranks]


@pytest.mark.distributed
@pytest.mark.parametrize("known", [True, False], ids=["known numbers", "streams"])
@pytest.mark.parametrize("counts", [(5, 2), (1, 4), (3, 3)], ids=str)
def test_the_training_is_that_of_one_process(ranks: Pool, counts: tuple[int, int], known: bool) -> None:
    expected, loss = unequal_runs.by_hand(counts)
    for rank in ranks(2).run(unequal_runs.fit, counts, "train", known):
        assert rank["steps"] == unequal_runs.EPOCHS * max(counts)
        assert rank["loss"] == pytest.approx(loss, rel=1e-6)
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(
                rank["net"][name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n} {m}"
            )


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("counts", "policy", "known", "message"),
    [
        (
            (5, 2),
            "fail",
            True,
            "unequal numbers of training batches: 5 on rank 0, 2 on rank 1; give every rank as many",
        ),
        ((5, 2), "fail", False, "only 1 of 2 ranks have a training batch 3; give every rank as many"),
        ((0, 2), "train", False, "only 1 of 2 ranks have a training batch at all"),
    ],
)
def test_all_ranks_say_what_is_wrong(
    ranks: Pool, counts: tuple[int, int], policy: str, known: bool, message: str
) -> None:
    for rank in ranks(2).run(unequal_runs.fit, counts, policy, known):
        assert message in rank["error"]


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="unequal_batches must be 'fail' or 'train', got 'join'"):
        ddp(unequal_batches="join")
