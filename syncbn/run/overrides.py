"""Overrides of a command line by Hydra's grammar, and the jobs of a sweep."""

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from syncbn.run.errors import UserError


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides by Hydra's grammar.

    Raises:
        UserError: an invalid override, with the correct form.
    """
    parsed = []
    for override in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(override))
        except HydraException as error:
            raise UserError(_unreadable(override, error)) from error
    return parsed


def with_quoted_paths(overrides: Sequence[str]) -> list[str]:
    """Overrides as they are, but for paths that Hydra's grammar can't read, which are quoted for it.

    `resume=/x/epoch=0-step=34.ckpt` is read as `evaluate` reads it: a value that begins like a path is one.
    """
    return [_quoted(text) if re.match(r"[^=]+=(/|\./|\.\./|~/)", text) else text for text in overrides]


def _quoted(override: str) -> str:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        key, _, value = override.partition("=")
        return f"{key}={literal(value)}"
    return override


def _unreadable(override: str, error: Exception) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        return f"can't read {override!r}: write group=choice or key=value, without spaces around the ="
    if re.match(r"\s*[\[{]", value):
        return f"can't read {override!r} as a list or a group of keys ({str(error).splitlines()[0]})"
    return f"can't read {override!r}: quote its value, {_quoted_for_a_shell(key, value)}"


def _quoted_for_a_shell(key: str, value: str) -> str:
    return shlex.quote(f"{key}={literal(value)}" if '"' in value else f'{key}="{value}"')


def is_hydras(override: Override) -> bool:
    """Whether an override belongs to Hydra's own config."""
    return override.key_or_group.startswith(("hydra.", "hydra/"))


def values(override: Override) -> list[Any]:
    """Values of an override; none if only its sweeper knows them."""
    if override.is_discrete_sweep():
        return [text.strip("'\"") for text in override.sweep_string_iterator()]
    return [] if override.is_sweep_override() else [override.value()]


def refuse_sweeps(overrides: Iterable[Override]) -> None:
    """Refuse several values of one key outside a sweep.

    Raises:
        UserError: a key has several values.
    """
    for override in overrides:
        if override.is_sweep_override():
            key, _, value = (text := str(override.input_line)).partition("=")
            hint = f"; if it is one, quote it: {_quoted_for_a_shell(key, value)}" if re.search(r"[/\s]", value) else ""
            raise UserError(f"{text} is a sweep of several values: add -m to run them all{hint}")


def job_lists(overrides: list[Override], *, each_alone: bool = False) -> list[list[str]]:
    """Overrides of each job; those for other sweepers (`interval(0, 1)`) are checked when their job starts.

    Args:
        overrides: overrides of our config.
        each_alone: for a sweeper without the product of values: each value once, with the first values of the others.
    """
    plain = [o for o in overrides if o.is_discrete_sweep() or not o.is_sweep_override()]
    if each_alone:
        texts = [_texts(override) for override in plain]
        first = [each[0] for each in texts]
        changed = [(place, text) for place, each in enumerate(texts) for text in each[1:]]
        return [first, *([*first[:place], text, *first[place + 1 :]] for place, text in changed)]
    (jobs,) = BasicSweeper.split_arguments(plain, max_batch_size=None)
    return [list(job) for job in jobs]


def _texts(override: Override) -> list[str]:
    if not override.is_discrete_sweep():
        return [str(override.input_line)]
    return [f"{override.get_key_element()}={text}" for text in override.sweep_string_iterator()]


def literal(value: Any) -> str:
    """Format a value for Hydra's grammar."""
    if isinstance(value, str):
        # A backslash is literal unless it precedes a quote, where it is doubled.
        return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), value) + "'"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{literal(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
