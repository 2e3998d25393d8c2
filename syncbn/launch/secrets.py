"""Redaction of keys, tokens and passwords in all that a run writes and prints.

A secret is the value of an environment variable, or of a key of the config or the command line, whose name ends with
`api_key`, `access_key`, `token`, `secret`, `password` or `credentials`.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

MASK = "<redacted>"
_NAMES = r"(?:api_?key|access_?key|token|secret|password|passwd|credentials?)"
_NAME = re.compile(rf"(?:.*[_.-])?{_NAMES}", re.IGNORECASE)
_ASSIGNMENT = re.compile(rf"((?:\b|_){_NAMES}['\"]?\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s,}}\]'\"]+)", re.IGNORECASE)
_SHORTEST = 8  # shorter values would also match other text

_known: set[str] = set()


def learn(node: Any) -> None:
    """Learn the secrets in a config, a mapping of variables, or the words of a command line."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if isinstance(value, str) and _is_secret(key, value):
                _add(value)
            learn(value)
    elif isinstance(node, str):
        for _, value in _ASSIGNMENT.findall(node):
            if _is_secret("token", value):
                _add(value.strip("'\""))
    elif isinstance(node, Sequence):
        for item in node:
            learn(item)


def redacted(node: Any) -> Any:
    """Redact the secrets in text, or in nested mappings and lists of plain values."""
    if isinstance(node, Mapping):
        return {
            key: MASK if isinstance(value, str) and _is_secret(key, value) else redacted(value)
            for key, value in node.items()
        }
    if isinstance(node, list | tuple):
        return [redacted(item) for item in node]
    if not isinstance(node, str):
        return node
    for secret in sorted(_known, key=len, reverse=True):
        node = node.replace(secret, MASK)
    return _ASSIGNMENT.sub(lambda found: found[1] + (MASK if _is_secret("token", found[2]) else found[2]), node)


def guard_the_screen() -> None:
    """Redact the secrets of environment and command line in all that this process prints from now on."""
    learn(dict(os.environ))
    learn(sys.argv[1:])
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Redacting):  # None where the file is closed
            setattr(sys, name, _Redacting(stream))


def _is_secret(key: Any, value: str) -> bool:
    """Whether a key has a secret value; a reference such as `${oc.env:HF_TOKEN}` isn't one."""
    return bool(value) and not value.startswith("${") and _NAME.fullmatch(str(key)) is not None


def _add(value: str) -> None:
    if len(value) >= _SHORTEST and value != MASK:
        _known.add(value)


class _Redacting:
    """A text stream that redacts and passes on to another."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._write: Callable[[str], int] = stream.write

    @property
    def write(self) -> Callable[[str], int]:
        """Write redacted text. W&B replaces this method by its own, which gets redacted text, too."""
        write = self._write
        return lambda text: write(redacted(text))

    @write.setter
    def write(self, write: Callable[[str], int]) -> None:
        self._write = write

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
