"""Signatures and annotations of any function, also of one whose annotations name what only a type checker imports.

From Python 3.14 on, these need no quotes, and `inspect.signature` raises `NameError` for them (PEP 649).
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

_UNKNOWN_STAY_NAMES: dict[str, Any] = {}
if sys.version_info >= (3, 14):
    from annotationlib import Format

    _UNKNOWN_STAY_NAMES["annotation_format"] = Format.FORWARDREF


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """`inspect.signature`; an annotation that can't be evaluated is a `ForwardRef` or a string.

    Raises:
        ValueError: the function is written in C and has no signature.
        TypeError: it isn't callable.
    """
    return inspect.signature(function, **_UNKNOWN_STAY_NAMES)


def annotations_of(of: Any) -> dict[str, Any]:
    """`inspect.get_annotations`: those of a class itself, without its bases'; unevaluated as in `signature_of`."""
    how = {key.removeprefix("annotation_"): value for key, value in _UNKNOWN_STAY_NAMES.items()}
    return inspect.get_annotations(of, **how)
