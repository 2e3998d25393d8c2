"""Outcomes of a policy: right, refused, wrong or crashed."""

import linecache
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import syncbn
from tests.networks.oracles.compare import WrongError, quiet

PACKAGE = Path(syncbn.__file__).parent


@dataclass(frozen=True)
class Facts:
    """Counts of an oracle in a network.

    Attributes:
        possible: number of norms that are foldable or prunable by construction.
        done: number of those that were folded or pruned.
    """

    possible: int = 0
    done: int = 0


@dataclass(frozen=True)
class Outcome:
    """Outcome of a policy on a network.

    Attributes:
        verdict: "right", "refused", "wrong" or "crashed".
        message: reason, unless it is right.
        facts: counts.
    """

    verdict: str
    message: str = ""
    facts: Facts = Facts()


class RefusedError(Exception):
    """A policy refused a network by its own one-line ValueError, TypeError or NotImplementedError."""


@contextmanager
def policy() -> Iterator[None]:
    """Call a policy; distinguishes its refusals from errors that escaped it."""
    with quiet():
        try:
            yield
        except (ValueError, TypeError, NotImplementedError) as error:
            if _is_refusal(error):
                raise RefusedError(str(error)) from error
            raise


def _is_refusal(error: Exception) -> bool:
    """Whether an error is a one-line message raised by a statement of the package."""
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or "\n" in str(error):
        return False
    file = last.tb_frame.f_code.co_filename
    line = linecache.getline(file, last.tb_lineno).strip()
    return Path(file).is_relative_to(PACKAGE) and line.startswith("raise ")


def judge(network: Any, oracle: Callable[[Any], Facts]) -> Outcome:
    """Judge a policy on a network, which the oracle builds from a Spec or gets otherwise."""
    try:
        with quiet():
            return Outcome("right", facts=oracle(network))
    except RefusedError as refusal:
        return Outcome("refused", str(refusal))
    except WrongError as difference:
        return Outcome("wrong", str(difference))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).strip() or "no message").splitlines()[0]
        return Outcome("crashed", f"{type(error).__name__}: {first} ({Path(frame.filename).name}:{frame.lineno})")
