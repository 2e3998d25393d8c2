"""What may come of a policy: right, refused, wrong or crashed."""

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
    """What an oracle has counted in a network.

    Attributes:
        possible: norms that can be folded, or that channels can be removed from, by construction.
        done: how many of them were, or lost channels.
    """

    possible: int = 0
    done: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a policy on a network.

    Attributes:
        verdict: "right", "refused", "wrong" or "crashed".
        message: why it isn't right.
        facts: what was counted.
    """

    verdict: str
    message: str = ""
    facts: Facts = Facts()


class RefusedError(Exception):
    """A policy has refused a network by a one-line ValueError or TypeError of its own."""


@contextmanager
def policy() -> Iterator[None]:
    """The call of a policy: a refusal of its own is told from an error that escaped it."""
    with quiet():
        try:
            yield
        except (ValueError, TypeError) as error:
            if _is_refusal(error):
                raise RefusedError(str(error)) from error
            raise


def _is_refusal(error: Exception) -> bool:
    """Whether an error was raised by a statement of the package, in one line."""
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or "\n" in str(error):
        return False
    file = last.tb_frame.f_code.co_filename
    line = linecache.getline(file, last.tb_lineno).strip()
    return Path(file).is_relative_to(PACKAGE) and line.startswith("raise ")


def judge(network: Any, oracle: Callable[[Any], Facts]) -> Outcome:
    """What comes of a policy on a network, which the oracle builds of a Spec, or knows otherwise."""
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
