"""The parser of commands without Hydra: what it accepts, refuses and prints."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from syncbn.cli.arguments import OnRun, Parser
from syncbn.norm.core.options import Count, Positive, option, required
from syncbn.run.errors import UserError


@dataclass
class Options:
    folders: list[str] = required("of runs")
    plot: Path = option(Path("plot.png"), "the picture")
    count: Count = option(3, "how many")
    rate: Positive | None = option(None, "how fast")
    kind: Literal["all", "torch"] = option("all", "which")
    smoke: bool = option(False, "a short one")
    label: str | None = option(None, "what to write")


@dataclass
class OneName:
    name: str = required("of a result")


PARSER = Parser("syncbn try", "Try a parser.\n\nAnd more of it.\n", Options, words="folders")
ON_RUN = Parser("syncbn look", "Look at a run.", OnRun, overrides="overrides")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a b", Options(["a", "b"])),
        ("a plot=x/y.png b count=5", Options(["a", "b"], plot=Path("x/y.png"), count=5)),
        ("--count=5 --plot x.png", Options([], plot=Path("x.png"), count=5)),
        ("--count 5 a", Options(["a"], count=5)),
        ("--smoke a", Options(["a"], smoke=True)),
        ("smoke=true", Options([], smoke=True)),
        ("--smoke=false", Options([])),
        ("rate=1e-3 kind=torch", Options([], rate=1e-3, kind="torch")),
        ("rate=2", Options([], rate=2)),
        ("rate=", Options([])),
        ("label=true", Options([], label="true")),  # a text stays one
        ("label=1=2", Options([], label="1=2")),
        ("outputs/lr=0.1/0", Options(["outputs/lr=0.1/0"])),  # a path with = in it
        ("count=3 count=4", Options([], count=4)),
    ],
)
def test_it_reads_every_spelling(line: str, expected: Options) -> None:
    assert PARSER.read(line.split()) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cuont=3", r"cuont: no such key; did you mean 'count'\? allowed: count, kind, label, plot, rate, smoke"),
        ("count=0", r"count: expected an integer at least 1, got 0"),
        ("count=3.5", r"count: expected an integer at least 1, got 3.5"),
        ("count=many", r"count: expected an integer at least 1, got 'many'"),
        ("count=", r"count: expected an integer at least 1, got ''"),
        ("rate=-1", r"rate: expected a number above 0 or null, got -1"),
        ("kind=onnx", r"kind: got 'onnx'; allowed: all, torch"),
        ("smoke=yes", r"smoke: expected true or false, got 'yes'"),
        ("--cuont 3", r"--cuont: no such flag, or one without its value; usage: syncbn try <folders> \[key=value\]"),
        ("a --count", r"--count: no such flag, or one without its value"),
    ],
)
def test_a_mistake_is_answered_with_what_is_allowed(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PARSER.read(line.split())


def test_dotted_keys_are_changes_of_the_runs_config() -> None:
    read = ON_RUN.read(["run=outputs/a", "data.batch_size=3", "data=digits_shifted", "--trainer.accelerator=cpu"])
    assert read == OnRun(Path("outputs/a"), None, "digits_shifted", ["data.batch_size=3", "trainer.accelerator=cpu"])
    with pytest.raises(UserError, match=r"norm: no such key; .*, or a dotted key of the run's config"):
        ON_RUN.read(["run=a", "norm=group"])


def test_what_is_missing_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"run: missing, the run's folder, .*; usage: syncbn look run=<path>"):
        ON_RUN.read([])
    with pytest.raises(UserError, match=r"expected key=value, got 'outputs/a'; run=outputs/a\?"):
        ON_RUN.read(["outputs/a"])


def test_one_name_is_one() -> None:
    parser = Parser("try", "Try.", OneName, words="name")
    for words in (["steps"], ["name=steps"], ["--name=steps"], ["--name", "steps"]):
        assert parser.read(words) == OneName("steps")
    for words in ([], ["a", "b"]):
        with pytest.raises(UserError, match=rf"give one name, got {len(words)}; usage: try <name>"):
            parser.read(words)


def test_the_usage_has_every_option_with_its_help_and_default() -> None:
    shown = PARSER.usage()
    assert shown.splitlines()[0] == "Try a parser."
    assert shown.endswith("And more of it.")
    assert "syncbn try <folders> [key=value] ..." in shown
    assert "  count=<n>       how many; 3 by default" in shown
    assert "  kind=all|torch  which; all by default" in shown
    assert "  smoke=true      a short one" in shown


def test_help_is_printed_and_a_users_mistake_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(words: list[str]) -> None:
        raise UserError(f"got {words}")

    monkeypatch.setattr(sys, "argv", ["syncbn", "a", "--help"])
    PARSER.main(refuse)
    assert "Try a parser." in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["syncbn", "a"])
    with pytest.raises(SystemExit) as ended:
        PARSER.main(refuse)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: got ['a']\n"
