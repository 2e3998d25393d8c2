"""The ranks of a group agree on one exchange, even if they differ in abilities or settings."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.norm.core import choices
from tests.ranks import Ranks

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([None, None], "one_shot"),
        (["one_shot", "one_shot"], "one_shot"),
        (["collective", "collective"], "collective"),
        (["collective", None], "ValueError: SYNCBN_EXCHANGE must be the same on all ranks"),
        (["one_shot", "x"], "ValueError: SYNCBN_EXCHANGE must be collective or one_shot, or unset"),
    ],
)
def test_the_environment_decides(ranks: Callable[[int], Ranks], asked: list[str | None], expected: str) -> None:
    for answer in ranks(2).run(choices.taken, asked):
        assert answer.startswith(expected)
        assert answer == expected or str(asked[1] or "") in answer


@pytest.mark.parametrize(
    ("rank", "how", "why", "said"),
    [
        (1, choices.no_compiler, "rank 1: no C++ compiler was found", ""),
        (0, choices.no_compiler, "rank 0: no C++ compiler was found", ""),
        (1, choices.no_time_out, "rank 1: torch 3.0 doesn't show a group's time-out", ""),
        (1, choices.not_linux, "rank 1: it takes Linux", ""),
        (1, choices.another_host, "the ranks are on several hosts, or in containers that don't see each other", ""),
        (0, choices.no_folder, "rank 0: [Errno 2] No such file or directory: '/nowhere'", "/nowhere"),
        (0, choices.a_limit_on_the_size_of_files, "rank 0: [Errno 27] File too large", "File too large"),
        (0, choices.another_process_by_that_number, "isn't the memory that was meant", ""),
        (1, choices.a_file_that_cant_be_opened, "[Errno 13] Permission denied: '/proc/", "Permission denied"),
    ],
)
def test_all_take_the_collective_where_one_rank_needs_it(
    ranks: Callable[[int], Ranks], rank: int, how: Callable[[], object], why: str, said: str
) -> None:
    results = ranks(2).run(choices.on_rank, rank, how, None)
    assert [name for name, _ in results] == ["collective"] * 2
    if said:
        assert [said in message for message in results[rank][1]] == [True], "once, by the rank that it concerns"
        assert "SYNCBN_EXCHANGE=collective" in results[rank][1][0]
    for text, _ in ranks(2).run(choices.on_rank, rank, how, "one_shot"):
        assert text.startswith("RuntimeError: SYNCBN_EXCHANGE=one_shot, but the ranks can't share memory: ")
        assert why in text


def test_what_is_summed_by_the_collective_in_any_case(ranks: Callable[[int], Ranks]) -> None:
    expected = dict.fromkeys(["float64", "float32", "parameter"], "one_shot")
    expected |= dict.fromkeys(["bfloat16", "int64", "meta", "subclass", "fake"], "collective")
    assert ranks(2).run(choices.kinds_of_buffers) == [expected] * 2


def test_a_destroyed_group_and_one_that_pretends_are_left_to_torch(ranks: Callable[[int], Ranks]) -> None:
    assert (
        ranks(2).run(choices.destroyed_group) == ["collective: the process group was destroyed, or isn't torch's"] * 2
    )
    assert choices.fake_backend().startswith("collective: the group's backend is cpu:fake")
    with pytest.raises(ValueError, match=r"must be collective or one_shot, or unset .*; got 'oneshot'"):
        choices.fake_backend("oneshot")


@pytest.mark.parametrize(("size", "expected"), [("64k", "collective"), ("8m", "one_shot")])
def test_a_small_dev_shm_and_what_is_left_in_it_after_kill_9(size: str, expected: str) -> None:
    """With a real one, in a separate mount namespace."""
    command = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} -m tests.norm.core.small_memory"
    unshare = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    result = subprocess.run(
        [*unshare, "env", "-u", "SYNCBN_EXCHANGE", "sh", "-c", command], capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines() == [f"{[expected] * 3} []"] * 2 + ["[] 0 blocks"], result.stderr
    said = ["No space left on device" in line for line in result.stderr.splitlines()]
    assert said.count(True) == (expected == "collective"), "once, though three groups fell back"
