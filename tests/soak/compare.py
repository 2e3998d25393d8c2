"""What differs between a run that was stopped and the one that wasn't."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syncbn.norm.core.messages import first_line

# Columns of a training that measure this machine, or count from the start of a process.
TIMES = ("loader/wait_share", "train/time", "train/batches", "train/samples", "train/device/", "validate/")
MEASURED = (*TIMES, "test/time", "test/batches", "test/samples", "test/device/")
# After a validation that the other run hasn't had: what a validation changes.
OF_VALIDATIONS = ("callbacks", "loops")


def difference(whole: Path, stopped: Path, *, validated_more: bool) -> str | None:
    """The first difference between two run folders, in words.

    Args:
        whole: folder of the uninterrupted run.
        stopped: folder of the other.
        validated_more: whether it had a validation in the middle, for a limit. Then what a validation changes is
            left out: its row, scores, and which checkpoint is the best.
    """
    names = ["last"] if validated_more else ["last", "best"]
    for name in names:
        paths = [folder / "checkpoints" / f"{name}.ckpt" for folder in (whole, stopped)]
        if not any(path.exists() for path in paths):
            continue
        try:
            sides = [torch.load(path, weights_only=True) for path in paths]
        except (OSError, RuntimeError) as error:
            return f"{name}.ckpt can't be read: {type(error).__name__}: {first_line(error)}"
        if validated_more:
            sides = [{key: value for key, value in side.items() if key not in OF_VALIDATIONS} for side in sides]
        for key, one, other in _differing(*sides):
            return f"{name}.ckpt: {key} is {_shown(other)} and not {_shown(one)}"
    for table in ("metrics.csv", "norm_statistics.csv"):
        one, other = (_rows(folder / table, without_test=validated_more) for folder in (whole, stopped))
        if validated_more:
            rest = iter(other)
            missing = [row for row in one if row not in rest]  # those in between are of the other validation
            if missing:
                return f"{table}: there is no {missing[0]}"
        elif one != other:
            return f"{table}: {_first(one, other)}"
    return None


def _rows(path: Path, without_test: bool) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v and not k.startswith(MEASURED)} for row in csv.DictReader(file)]
    if without_test:
        rows = [{k: v for k, v in row.items() if not k.startswith("test/")} for row in rows]
    return [row for row in rows if row.keys() - {"epoch", "step"}]


def _first(one: list[dict[str, str]], other: list[dict[str, str]]) -> str:
    for number, (row, found) in enumerate(zip(one, other, strict=False)):
        if row != found:
            return f"row {number} is {found} and not {row}"
    more = other[len(one) :] or one[len(other) :]
    return f"{len(other)} rows and not {len(one)}; the first of the others is {more[0]}"


def _differing(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one.keys() | other.keys():
            yield from _differing(one.get(name), other.get(name), f"{key}.{name}" if key else str(name))
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for number, sides in enumerate(zip(one, other, strict=True)):
            yield from _differing(*sides, f"{key}[{number}]")
    elif not _same(one, other):
        yield key, one, other


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        equal = one.dtype == other.dtype and one.shape == other.shape
        return equal and torch.equal(one.nan_to_num(nan=7.0), other.nan_to_num(nan=7.0))
    return type(one) is type(other) and bool(one == other or (one != one and other != other))


def _shown(value: Any) -> str:
    return str(value).replace("\n", " ")[:80]
