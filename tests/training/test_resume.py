"""A run that is stopped anywhere and resumed is bitwise equal to an uninterrupted one."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import Ranks
from tests.training import fits
from tests.training.stopped_runs import whole_and_resumed


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def check(whole: Any, pieces: list[Any], stops: list[int]) -> None:
    state, rows = whole
    for stop_at, (was_stopped, before, (resumed, after)) in zip(stops, pieces, strict=True):
        for part, value in state.items():
            assert same(value, resumed[part]), f"{part} after a stop at {stop_at}"
        assert before + after == rows, f"logged rows after a stop at {stop_at}"
        assert was_stopped


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "cross_iteration", "val_check_interval": 3, "stops": 20},
        {"kind": "sync", "recalibrate": True, "val_check_interval": 3},
        {"kind": "batch", "accumulate_grad_batches": 2, "val_check_interval": 2},
        pytest.param({"kind": "sync", "ema": True, "recalibrate": True}, marks=fits.averaging),
        {"kind": "gan", "val_check_interval": 3, "stops": 20},
    ],
    ids=["cross_iteration", "recalibrated", "accumulation", "average of the weights", "gan"],
)
def test_resuming_after_a_stop_anywhere_is_exact(tmp_path: Path, options: dict[str, Any]) -> None:
    count = options.pop("stops", 8)
    batches = 28 if "val_check_interval" in options else 15  # of training and of validation
    stops = random.Random(str(options)).sample(range(batches - 1), count)

    whole, pieces = whole_and_resumed(tmp_path, stops=stops, **options)

    check(whole, pieces, stops)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["cross_iteration", "batch", "alone", "gan"])
def test_two_ranks_resume_exactly(ranks: Callable[[int], Ranks], tmp_path: Path, kind: str) -> None:
    """One of them gets the signal; with norm=batch, or alone in its group, each has its own running statistics."""
    stops = random.Random(kind).sample(range(7), 3)

    results = ranks(2).run(partial(whole_and_resumed, tmp_path, kind, stops))

    for whole, pieces in results:
        check(whole, pieces, stops)
