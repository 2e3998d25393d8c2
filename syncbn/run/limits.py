"""Limits of a training by epochs, steps, time and batches, checked before anything is built."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from syncbn.norm.core.options import suggest

_SECONDS = {"weeks": 7 * 86400, "days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d):(\d\d)")


def seconds(max_time: str | Mapping[str, float] | None) -> float | None:
    """Convert `trainer.max_time` to seconds: `DD:HH:MM:SS`, or a number for each unit.

    Raises:
        ValueError: it is neither, or zero.
    """
    if max_time is None:
        return None
    if isinstance(max_time, str):
        if not (match := _CLOCK.fullmatch(max_time.strip())):
            raise ValueError(
                f"expected days:hours:minutes:seconds, 00:12:00:00 say, or {{hours: 12}}, got {max_time!r}"
            )
        max_time = dict(zip(("days", "hours", "minutes", "seconds"), map(int, match.groups()), strict=True))
    if not isinstance(max_time, Mapping):
        raise ValueError(f"expected days:hours:minutes:seconds, or {{seconds: {max_time}}}, got {max_time!r}")
    for unit in max_time:
        if unit not in _SECONDS:
            raise ValueError(f"no such unit {unit!r}; {suggest(str(unit), _SECONDS)}")
    total = sum(float(number) * _SECONDS[unit] for unit, number in max_time.items())
    if not total > 0:
        raise ValueError(f"expected a time above 0 seconds, got {dict(max_time)}")
    return total


def limit_mistakes(trainer: Mapping[str, Any], trains: bool) -> list[str]:
    """Check the limits of a trainer's config: an invalid time, or no limit at all."""
    try:
        seconds(trainer.get("max_time"))
    except (ValueError, TypeError) as error:
        return [f"trainer.max_time: {error}"]
    limits = {"max_epochs": None, "max_steps": -1, "max_time": None}
    if trains and not trainer.get("fast_dev_run") and all(trainer.get(key, no) == no for key, no in limits.items()):
        advice = (
            "set trainer.max_epochs, trainer.max_steps or trainer.max_time, or trainer.max_epochs=-1 to train until"
        )
        return [f"trainer: nothing ends this run; {advice} early stopping or a signal ends it"]
    return []


def batch_mistakes(trainer: Mapping[str, Any], batches: Mapping[str, int], tests: bool) -> Iterator[str]:
    """Check a trainer's limits against the numbers of batches.

    Args:
        trainer: config of the trainer.
        batches: known numbers of batches of `train`, `val` and `test` on a rank.
        tests: whether there will be a test.
    """
    overfit = trainer.get("overfit_batches") or 0
    left = dict(batches)
    for part, key in (("train", "overfit_batches"), *((part, f"limit_{part}_batches") for part in batches)):
        limit, there = trainer.get(key), batches.get(part)
        if limit is None or there is None or (key != "overfit_batches" and overfit and part != "test"):
            continue
        left[part] = int(there * limit) if isinstance(limit, float) else min(there, int(limit))
        if key == "overfit_batches" and not overfit:
            left[part] = there
        elif isinstance(limit, float) and limit and there and not left[part]:
            yield (
                f"trainer.{key}={limit} of {there} batch(es) is none: a number without a point counts batches "
                f"({key}=1), and one batch is {key}={_up(1 / there)}"
            )
    if tests and trainer.get("limit_test_batches") == 0:
        yield "trainer.limit_test_batches=0 leaves the test out: add test=false"
    accumulated = trainer.get("accumulate_grad_batches") or 1
    if left.get("train") and accumulated > left["train"]:
        yield (
            f"trainer.accumulate_grad_batches={accumulated} is more than the {left['train']} batch(es) of an epoch, "
            f"after which a step is made in any case: take {left['train']}, or less"
        )


def _up(fraction: float) -> float:
    """Round a fraction up to three digits."""
    return min(1.0, float(f"{fraction + 5e-4:.3f}")) if fraction > 1e-3 else fraction
