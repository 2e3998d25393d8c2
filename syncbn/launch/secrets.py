"""Keys, tokens and passwords stay out of what a run writes and prints.

What counts as one: the value of an environment variable, or of a key of the config or the command line, whose name ends
with `api_key`, `access_key`, `token`, `secret`, `password` or `credentials`.
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
_SHORTEST = 8  # a shorter value would also be found where it is something else

_known: set[str] = set()


def learn(node: Any) -> None:
    """Take note of the secrets in a config, a mapping of variables, or the words of a command line."""
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
    """The same text, or the same nested mappings and lists of plain values, without the secrets."""
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
    """From here on, nothing that this process prints shows the secrets of its environment and its command line."""
    learn(dict(os.environ))
    learn(sys.argv[1:])
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), _Redacting):
            setattr(sys, name, _Redacting(stream))


def _is_secret(key: Any, value: str) -> bool:
    """A reference to where the secret is, `${oc.env:HF_TOKEN}` say, is none."""
    return bool(value) and not value.startswith("${") and _NAME.fullmatch(str(key)) is not None


def _add(value: str) -> None:
    if len(value) >= _SHORTEST and value != MASK:
        _known.add(value)


class _Redacting:
    """A text stream in front of another."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._write: Callable[[str], int] = stream.write

    @property
    def write(self) -> Callable[[str], int]:
        """Writes text without its secrets. W&B puts a function of its own in this place, which gets such text, too."""
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
