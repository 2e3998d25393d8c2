"""A hanging rank is reported, with its position, by those that wait for it, and all ranks end."""

import os
import re
import signal

import pytest

from syncbn.norm.core.kernels import has_native
from syncbn.training import Watchdog
from syncbn.training.watch import EXIT_CODE, Rank, verdict
from tests.lost_ranks import Ended, LostRanks
from tests.training import hanging_ranks

pytestmark = pytest.mark.distributed

TIMEOUT_S, SLOW_TIMEOUT_S = 8.0, 12.0  # a step takes milliseconds; a loaded machine may make that seconds
CASES = {
    "forward": "sync",
    "backward": "sync",
    "reduction": "batch",
    "loader": "sync",
    "barrier": "sync",
    "stopped": "sync",
    "slow": "sync",
}


@pytest.fixture(scope="module")
def ends() -> dict[str, list[Ended]]:
    """Run all cases at once, since they mostly wait."""
    has_native()  # on a new machine it takes longer to compile than these ranks may take
    started = {}
    for case, norm in CASES.items():
        where = {"reduction": "forward", "slow": "loader"}.get(case, case)
        limits = (TIMEOUT_S, 100.0, TIMEOUT_S + 2) if case == "slow" else (TIMEOUT_S, SLOW_TIMEOUT_S)
        started[case] = LostRanks(2, hanging_ranks.train, where, norm, *limits)
    stopped = started["stopped"]
    stopped.wait_for("reached")
    os.kill(stopped.processes[1].pid or 0, signal.SIGSTOP)
    return {case: ranks.end(stopped=1 if case == "stopped" else None) for case, ranks in started.items()}


def message(ends: list[Ended]) -> str:
    """The message, which only one of the ranks printed."""
    texts = [end.output for end in ends if "the run ends with exit code 124" in end.output]
    assert len(texts) == 1, [end.output for end in ends]
    return texts[0]


@pytest.mark.parametrize(
    ("case", "waiting", "culprit"),
    [
        (
            "forward",
            r"rank 0: waits in the forward pass of net\.4 \(SyncBatchNorm\)",
            r"rank 1: is in the forward pass of net\.2 \(Sleeps\), at .*hanging_ranks\.py:\d+ in sleep",
        ),
        (
            "backward",
            r"rank 0: waits in the backward pass of net\.1 \(SyncBatchNorm\)",
            r"rank 1: is in the forward pass of net\.2 \(Sleeps\), at .*hanging_ranks\.py:\d+ in sleep",
        ),
        (
            "reduction",
            r"rank 0: waits in a backward pass, for DDP's reduction of the gradients",
            r"rank 1: is in the forward pass of net\.2 \(Sleeps\)",
        ),
        (
            "loader",
            r"rank 0: waits in torch\.distributed's all_reduce, called by .*unequal\.py:\d+",
            r"rank 1: loads a batch, at .*hanging_ranks\.py:\d+ in batches",
        ),
    ],
)
def test_the_rank_and_the_layer_are_named(ends: dict[str, list[Ended]], case: str, waiting: str, culprit: str) -> None:
    assert [end.code for end in ends[case]] == [EXIT_CODE] * 2, ends[case]
    text = message(ends[case])
    assert re.search(r"nothing moves on rank 1 for \d+ s in epoch 1, batch \d", text), text
    assert re.search(waiting, text), text
    assert re.search(culprit, text), text


def test_ranks_on_different_paths_are_told_where_each_waits(ends: dict[str, list[Ended]]) -> None:
    assert [end.code for end in ends["barrier"]] == [EXIT_CODE] * 2, ends["barrier"]
    text = message(ends["barrier"])
    assert "all ranks wait for each other" in text
    assert re.search(
        r"rank 0: waits in torch\.distributed's barrier, called by .*hanging_ranks\.py:\d+ in training", text
    )
    assert "rank 1: waits in the forward pass of net.1 (SyncBatchNorm)" in text


def test_a_rank_that_does_not_answer_is_named(ends: dict[str, list[Ended]]) -> None:
    assert ends["stopped"][0].code == EXIT_CODE
    assert "rank 1: doesn't answer" in message(ends["stopped"])


def test_a_slow_loader_is_given_its_time(ends: dict[str, list[Ended]]) -> None:
    assert [(end.code, end.output.splitlines()[-1]) for end in ends["slow"]] == [(0, "trained")] * 2


MOVES = Rank(tick=9, still_s=0.0, limit_s=10.0, waits=False, place="", batch="epoch 1, batch 1")
STANDS = MOVES._replace(still_s=11.0, place="is in x")
WAITS = MOVES._replace(still_s=11.0, place="waits in y", waits=True)


@pytest.mark.parametrize(
    ("ranks", "names"),
    [
        ([MOVES, MOVES], None),
        ([WAITS, MOVES], None),
        ([WAITS, STANDS._replace(limit_s=20.0)], None),
        ([WAITS, WAITS._replace(still_s=9.0)], None),
        ([WAITS, STANDS, WAITS], "nothing moves on rank 1 "),
        ([STANDS, WAITS, STANDS], "nothing moves on ranks 0, 2 "),
        ([WAITS, WAITS], "all ranks wait"),
        ([WAITS, MOVES._replace(ended=True)], "rank 1: has ended"),
        ([MOVES, STANDS], "nothing moves on rank 1 "),
    ],
)
def test_only_those_that_nobody_keeps_waiting_are_to_blame(ranks: list[Rank], names: str | None) -> None:
    text = verdict(dict(enumerate(ranks)), own=0)
    assert (text is None) == (names is None)
    assert names is None or names in str(text)


def test_many_ranks_are_told_in_few_lines() -> None:
    text = verdict(dict.fromkeys(range(512), WAITS) | {100: STANDS}, own=0)
    assert text is not None
    assert len(text.splitlines()) == 3
    assert "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 503 more: waits in y" in text


@pytest.mark.parametrize("limits", [(0, 1), (-1, 1), (2, 1)])
def test_limits_are_positive_and_a_step_is_not_the_slowest(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="timeout_s must be positive and at most slow_timeout_s"):
        Watchdog(*limits)
