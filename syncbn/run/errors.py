"""Users' mistakes: one message, exit code 2, no traceback."""

import errno
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from syncbn.launch.faults import Fault

EXIT_CODE = 2
_PATIENCE_S = 5.0


class UserError(Exception):
    """A mistake on the command line or in a config; its text says what to do."""


def fail(message: str, *, prints: bool = True, after_others: bool = False, code: int = EXIT_CODE) -> NoReturn:
    """End the process with an exit code; the rank that reports prints the message to stderr.

    torchrun ends all ranks as soon as one ends. `after_others` waits so that rank 0, which found the same mistake, can
    print it first.
    """
    if after_others:
        time.sleep(_PATIENCE_S)
    if prints:
        print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


@contextmanager
def user_mistakes() -> Iterator[None]:
    """Report errors of our checks and missing packages, raised while building, as the user's mistakes."""
    try:
        yield
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        raise UserError(_told(error)) from error
    except Exception as error:
        if _is_lightnings_refusal(error) or isinstance(error.__cause__, ValueError | TypeError):
            raise UserError(_first_paragraph(error.__cause__ or error)) from error
        raise


@contextmanager
def lightnings_refusals() -> Iterator[None]:
    """Report Lightning's refusals at the start of a fit as mistakes in the config; other errors pass through."""
    try:
        yield
    except Exception as error:
        if _is_lightnings_refusal(error) or (isinstance(error, ValueError) and _raised_by_lightning(error)):
            raise UserError(_first_paragraph(error)) from error
        raise


@contextmanager
def disk_faults() -> Iterator[None]:
    """A disk that is full, read-only or broken ends a run in one line: what is whole on it stays so."""
    before = threading.excepthook
    threading.excepthook = _without_writers(before)
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE):
            raise
        where = f": can't write {error.filename!r}" if error.filename else ""
        raise Fault(
            f"{error.strerror}{where}; the run ends, and goes on from its last checkpoint when that is mended "
            "(resume=auto)"
        ) from error
    finally:
        threading.excepthook = before


def _told(error: Exception) -> str:
    """Text of an error; one from a user's package says little without the line."""
    from syncbn.run.targets import users_line  # imports inspect, which scripts/inspect.py would hide at the start

    place = users_line(error)
    return f"{type(error).__name__}: {error}{place}" if place else str(error)


def _without_writers(hook: Callable[[threading.ExceptHookArgs], object]) -> Callable[[threading.ExceptHookArgs], None]:
    """Leave out what TensorBoard's thread couldn't write, which the next write raises in the main thread."""

    def shown(failed: threading.ExceptHookArgs) -> None:
        if not (issubclass(failed.exc_type, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
            hook(failed)

    return shown


def _raised_by_lightning(error: Exception) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("lightning.")


def _is_lightnings_refusal(error: Exception) -> bool:
    return type(error).__name__ == "MisconfigurationException"


def _first_paragraph(error: BaseException) -> str:
    return str(error).strip().split("\n\n")[0]
