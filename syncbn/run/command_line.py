"""Parsing of Hydra's command lines: flags in any position, and overrides, before anything is composed."""

import difflib
import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser

from syncbn.norm.core.options import suggest
from syncbn.run.errors import UserError
from syncbn.run.overrides import with_quoted_paths

_MODES = ("run", "multirun", "cfg", "info", "shell_completion")


@dataclass(frozen=True)
class CommandLine:
    """Parts of a command line that determine what is composed.

    Attributes:
        overrides: `group=choice`, `key=value` and Hydra's other forms, in order.
        multirun: whether -m is given; a config may also request a sweep.
        config_name: name of the primary config.
        config_path: location of the primary config, absolute or `pkg://`; None for `conf/`.
        config_dir: folder of further configs.
    """

    overrides: Sequence[str]
    multirun: bool = False
    config_name: str = "train"
    config_path: str | None = None
    config_dir: Path | None = None


@contextmanager
def unchecked_help() -> Iterator[None]:
    """Context in which Hydra can make its parser of flags, whose help of `--shell-completion` isn't text until shown.

    From Python 3.14 on, argparse refuses that (hydra#3121), so its check of help is left out meanwhile.
    """
    parsers: Any = ArgumentParser
    if not hasattr(parsers, "_check_help") or "_check_help" in vars(parsers):  # none, or left out already
        yield
        return
    parsers._check_help = lambda parser, action: None  # hides the one of its base class
    try:
        yield
    finally:
        del parsers._check_help


def read(words: Sequence[str], config_name: str = "train") -> tuple[CommandLine, Namespace]:
    """Parse a command line; returns the parts that determine what is composed, and Hydra's flags.

    Flags may be before, between and after overrides. `--key=value` is the override `key=value` if `--key` isn't a flag
    of Hydra: W&B's agent and users of argparse write it this way.

    Raises:
        UserError: an unknown flag, or mutually exclusive flags.
    """
    with unchecked_help():
        parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # argparse would print its usage and exit
    args, unknown = parser.parse_known_intermixed_args(_spelt_as_hydras(words, parser))
    if unknown:
        raise UserError(_unknown(unknown[0], words, parser))
    if len(chosen := [f"--{name.replace('_', '-')}" for name in _MODES if getattr(args, name)]) > 1:
        raise UserError(f"{' and '.join(chosen)}: one at a time")
    if args.resolve and not (args.cfg or args.help):
        raise UserError("--resolve goes with --cfg or --help: --cfg job --resolve")
    if args.config_dir and not Path(args.config_dir).is_dir():
        raise UserError(f"--config-dir {args.config_dir}: there is no such folder")
    if args.config_path:
        args.config_path = _absolute(args.config_path)
    args.overrides = with_quoted_paths([_at_home(_named(word)) for word in args.overrides])
    line = CommandLine(
        overrides=args.overrides,
        multirun=args.multirun,
        config_name=args.config_name or config_name,
        config_path=args.config_path,
        config_dir=Path(args.config_dir).resolve() if args.config_dir else None,
    )
    return line, args


def with_overrides(line: CommandLine, overrides: Sequence[str]) -> CommandLine:
    """Copy with other overrides."""
    return replace(line, overrides=list(overrides))


def _spelt_as_hydras(words: Sequence[str], parser: ArgumentParser) -> list[str]:
    flags = parser._option_string_actions
    spelt = []
    for place, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if word in ("--info", "-i") and not set(words[place + 1 : place + 2]) & set(flags["--info"].choices or ()):
            spelt.append("--info=all")  # otherwise argparse takes the next override as its value
        elif equals and re.match(r"--[+~]{0,2}[^\W\d]", word) and name not in flags:
            spelt.append(word[2:])
        else:
            spelt.append(word)
    return spelt


def _named(override: str) -> str:
    """Quote a run's name that Hydra's grammar reads as a number: 42, 1e3."""
    return re.sub(r"run_id=([\d.][\w.+-]*)", r"run_id='\1'", override) if override.startswith("run_id=") else override


def _at_home(override: str) -> str:
    """Replace a leading `~/` of a value by the home folder: shells don't behind `key=`, and a folder `~` is no wish."""
    key, equals, value = override.partition("=")
    return key + equals + os.path.expanduser(value) if value.startswith("~/") else override


def _absolute(config_path: str) -> str:
    """Make a path absolute, relative to the current folder. Hydra's would be relative to a file of this package."""
    if config_path.startswith("pkg://"):
        return config_path
    folder = Path(config_path.removeprefix("file://")).resolve()
    if not folder.is_dir():
        raise UserError(f"--config-path {config_path}: there is no folder {folder}")
    return str(folder)


def _refuse(message: str) -> NoReturn:
    flag, found, value = message.removeprefix("argument ").partition(": ignored explicit argument ")
    if found:
        name, value = flag.split("/")[0], value.strip("'")
        message = f"{name} is a flag of Hydra's and takes no value; an option of the config is {name[2:]}={value}"
    raise UserError(message)


def _unknown(flag: str, words: Sequence[str], parser: ArgumentParser) -> str:
    """Message for unknown flags: `--task gan`, `-norm=group` and `--mutlirun`."""
    flags = [name for name in parser._option_string_actions if name.startswith("--")]
    if not (option := flag.lstrip("-")) or difflib.get_close_matches(flag, flags, cutoff=0.8):
        return f"{flag}: no such flag; {suggest(flag, flags)}"
    if "=" not in option:
        following = [*words, ""][list(words).index(flag) + 1]
        option += f"={'<value>' if not following or following.startswith('-') or '=' in following else following}"
    return f"{flag}: no such flag; an option of the config is written {option}"
