"""Batch size per rank after a change of the number of ranks."""

from pathlib import Path
from typing import Any

import pytest

from syncbn.run.elastic import batch_size_of_a_rank
from syncbn.run.resume import Checkpoint


def saved(**options: Any) -> Checkpoint:
    return Checkpoint(Path("last.ckpt"), 5, 4, **{"world_size": 2, "global_batch_size": 24, **options})


@pytest.mark.parametrize(("ranks", "share"), [(1, 24), (3, 8), (4, 6)])
def test_the_global_batch_is_kept(ranks: int, share: int) -> None:
    assert batch_size_of_a_rank(12, ranks, saved(), "keep") == share


def test_a_start_takes_what_the_config_says_and_a_resumed_run_keeps_its_batches() -> None:
    for elastic in ("keep", "refuse"):
        for checkpoint in (None, saved(world_size=None, global_batch_size=None), saved(global_batch_size=None)):
            assert batch_size_of_a_rank(7, 2, checkpoint, elastic) == 7
        assert batch_size_of_a_rank(7, 2, saved(), elastic) == 12


def test_another_number_is_refused_where_asked_or_where_it_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"of 2 rank\(s\), and there are 1: start 2, or take elastic=keep"):
        batch_size_of_a_rank(12, 1, saved(), "refuse")
    with pytest.raises(ValueError, match=r"doesn't say how large a global batch was .*: start 2"):
        batch_size_of_a_rank(None, 1, saved(global_batch_size=None), "keep")
    with pytest.raises(ValueError, match=r"can't share its global batch of 24 samples equally"):
        batch_size_of_a_rank(12, 5, saved(), "keep")
