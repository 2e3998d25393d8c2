"""The one-shot exchange with ranks lost, late or interrupted: waiting ranks get errors, and nothing is left over."""

import pytest

from tests import soak_exchange
from tests.lost_ranks import Ended, LostRanks
from tests.norm.core import faults

pytestmark = pytest.mark.distributed


def told(ends: list[Ended], *ranks: int) -> list[str]:
    """Errors that ranks printed."""
    for rank in ranks:
        assert ends[rank].code == 0, ends[rank].output
    return [ends[rank].output.rpartition("told after ")[2] for rank in ranks]


@pytest.mark.parametrize("in_flight", [False, True])
@pytest.mark.parametrize("how", ["killed", "killed with a child", "ends"])
def test_ranks_that_wait_for_one_that_has_ended_are_told_which(how: str, in_flight: bool) -> None:
    for text in told(LostRanks(3, faults.wait_for_a_lost_rank, how, in_flight).end(), 0, 2):
        assert "rank 1 ended, or left the process group, before a sum over ranks 0, 1, 2" in text
        # gloo's ranks are told within 2 s; the child would hold a lock that it shares for 100 s
        assert float(text.partition(" ")[0]) < 20


@pytest.mark.parametrize("how", ["stopped", "sleeps"])
def test_a_time_out_names_the_rank_that_is_missing(how: str) -> None:
    lost = LostRanks(3, faults.wait_for_a_lost_rank, how, False, group_timeout_s=3)
    for text in told(lost.end(60, stopped=1), 0, 2):
        assert "rank 1 sent nothing to a sum over ranks 0, 1, 2 within the group's time-out of 3 s" in text


def test_the_time_out_is_that_of_the_group_at_the_time() -> None:
    first, _ = LostRanks(2, faults.time_out_that_is_changed_later).end(60, stopped=1)
    assert "rank 1 sent nothing to a sum over ranks 0, 1 within the group's time-out of 1 s" in first.output


@pytest.mark.parametrize(
    ("function", "outputs"),
    [
        (
            faults.interrupted,
            ["sum interrupted\nwait interrupted\nroom interrupted\nall sums were right\n", "all sums were right\n"],
        ),
        (faults.handled_signals, ["True\n", "late\n"]),
        (
            faults.forked_from_a_rank,
            ["child: a process that was forked from a rank can't sum over ranks: it isn't one of them\nmaps 0\n"] * 2,
        ),
        (faults.other_file_descriptors_are_closed, ["", ""]),
    ],
)
def test_sums_go_on_after(function, outputs: list[str]) -> None:
    ends = LostRanks(2, function).end()
    assert [end.output for end in ends] == outputs
    assert [end.code for end in ends] == [0, 0]


def test_a_short_soak(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak_exchange.main(["--exchanges", "3000", "--ranks", "4", "--load", "2"]) == 0
    assert ": 11,227 sums compared, 0 wrong" in capsys.readouterr().out
