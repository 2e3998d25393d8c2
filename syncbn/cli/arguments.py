"""Parser of the commands whose options aren't a Hydra config: a dataclass declares the options.

A field is an option, `key=value` on the command line. Its type and bounds are checked; its help and default are
printed. `--key=value`, `--key value` and, for a boolean option, `--key` are accepted too.
"""

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

from syncbn.launch.world import current_world
from syncbn.norm.core.options import mistakes, option, required, suggest
from syncbn.run.errors import UserError, fail

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


@dataclass(frozen=True)
class Parser(Generic[Options]):
    """Parser and help text of one command.

    Attributes:
        program: command as typed, such as `syncbn evaluate`.
        about: description: a summary line, then details; None under `python -OO`, which takes docstrings out.
        options: dataclass of the options.
        words: name of the option that takes words without `=`, a list or a string.
        overrides: name of the option that takes dotted keys of a run's config, a list.
    """

    program: str
    about: str | None
    options: type[Options]
    words: str = ""
    overrides: str = ""

    def main(self, command: Callable[[list[str]], Any]) -> None:
        """Run `command` on the command line, or print the usage.

        A user's mistake ends in exit code 2 and one line, printed by the first rank only. So does a file that can't be
        read or written.
        """
        words, world = sys.argv[1:], current_world()
        if {"-h", "--help"} & set(words):
            print(self.usage())
            return
        try:
            command(words)
        except (UserError, OSError) as error:
            if isinstance(error, OSError) and error.filename is None:  # no file's: of a socket, say
                raise
            said = f"{error.strerror}: {error.filename!r}" if isinstance(error, OSError) else str(error)
            fail(said, prints=world.rank == 0, after_others=world.rank > 0)

    def read(self, words: Sequence[str]) -> Options:
        """Parse a command line into options.

        Raises:
            UserError: an unknown option, a missing one, or a value that isn't allowed.
        """
        given: dict[str, Any] = {name: [] for name in (self.words, self.overrides) if name}
        for word in self._spelt(words):
            key, equals, text = word.partition("=")
            if not equals or (self.words and (not re.fullmatch(r"[\w.]+", key) or Path(word).exists())):
                self._take_word(word, given)
            elif self.overrides and "." in key:
                given[self.overrides].append(word)
            elif self.words and key == self.words:  # <name>, as help writes it
                self._take_word(text, given)
            elif key in self._named():
                given[key] = _value(text, self._kinds()[key])
            else:
                hint = ", or a dotted key of the run's config" if self.overrides else ""
                raise UserError(f"{key}: no such key; {suggest(key, self._named())}{hint}")
        if self.words and self._kinds()[self.words] is str:
            given[self.words] = self._one_word(given[self.words])
        for each in fields(self.options):
            if each.name not in given and each.default is each.default_factory is MISSING:
                raise UserError(f"{each.name}: missing, {each.metadata['help']}; usage: {self._usage_line()}")
        if found := mistakes(given, self.options):
            raise UserError("\n       ".join(found))
        return self.options(**given)

    def usage(self) -> str:
        """Text of `--help`."""
        summary, _, more = (self.about or "").strip().partition("\n")
        rows = [(self._shown(each), _help(each)) for each in fields(self.options)]
        width = max((len(shown) for shown, _ in rows), default=0)
        lines = [f"  {shown:<{width}}  {text}" for shown, text in rows]
        return "\n".join(
            [
                *([summary, ""] if summary else []),
                self._usage_line(),
                "",
                *lines,
                *([textwrap.dedent(more).rstrip()] if more else []),
            ]
        )

    def _usage_line(self) -> str:
        """Command with its required options."""
        required = [each for each in fields(self.options) if each.default is each.default_factory is MISSING]
        words = [f"<{self.words}>"] if self.words else []
        keys = [self._shown(each) for each in required if each.name != self.words]
        return " ".join([self.program, *words, *keys, "[key=value] ..."])

    def _shown(self, each: Field[Any]) -> str:
        if each.name == self.words:
            return f"<{each.name}>"
        if each.name == self.overrides:
            return "key.key=value"
        return f"{each.name}={_placeholder(self._kinds()[each.name])}"

    def _kinds(self) -> dict[str, Any]:
        return get_type_hints(self.options)

    def _named(self) -> list[str]:
        return [name for name in self._kinds() if name not in (self.words, self.overrides)]

    def _spelt(self, words: Sequence[str]) -> Iterator[str]:
        """Rewrite every option as `key=value`."""
        left = list(words)
        while left:
            word = left.pop(0)
            if not word.startswith("--"):
                yield word
                continue
            key, equals, value = word[2:].partition("=")
            key = key.replace("-", "_")
            if not equals and self._kinds().get(key) is bool:
                value = "true"
            elif not equals:
                if key not in self._kinds() or key == self.overrides or not left:
                    raise UserError(f"{word}: no such flag, or one without its value; usage: {self._usage_line()}")
                value = left.pop(0)
            yield f"{key}={value}"

    def _take_word(self, word: str, given: dict[str, Any]) -> None:
        if not self.words:
            (first, *_) = self._named()
            raise UserError(f"expected key=value, got {word!r}; {first}={word}? usage: {self._usage_line()}")
        given[self.words].append(word)

    def _one_word(self, words: list[str]) -> str:
        if len(words) != 1:
            raise UserError(f"give one {self.words}, got {len(words)}; usage: {self._usage_line()}")
        return words[0]


@dataclass
class OnRun:
    """Options of every command on a finished run."""

    run: Path = required("the run's folder, outputs/<run_id>")
    checkpoint: Path | None = option(None, "checkpoint to load instead of checkpoints/best.ckpt")
    data: str | None = option(None, "data to use instead of the run's, a choice of conf/data")
    overrides: list[str] = option([], "overrides of the run's config, such as data.batch_size=64")


def _value(text: str, kind: Any) -> Any:
    """Convert a typed value to the option's type; a value of another type is left unchanged, to be refused."""
    kinds = get_args(kind) if get_origin(kind) is not Literal else ()
    if type(None) in kinds and not text:
        return None
    if Path in (kind, *kinds):
        quoted = re.fullmatch(r"""(['"])(.*)\1""", text)  # as `train` has it quoted for Hydra
        return Path(quoted[2] if quoted else text)
    if str in (kind, *kinds):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _placeholder(kind: Any) -> str:
    kinds = [kind, *(get_args(kind) if get_origin(kind) is not Literal else ())]
    for each in kinds:
        if get_origin(each) is Literal:
            return "|".join(map(str, get_args(each)))
        if each is bool:
            return "true"
    words = {Path: "<path>", str: "<name>", int: "<n>", float: "<x>"}
    return next((words[each] for each in kinds if each in words), "<value>")


def _help(each: Field[Any]) -> str:
    text = str(each.metadata["help"])
    default = each.default
    return text if default in (MISSING, None, False) else f"{text}; {default} by default"
