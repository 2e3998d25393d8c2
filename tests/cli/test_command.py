"""`syncbn` and `python -m syncbn`: overview, commands, and messages for unknown ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from syncbn.cli import commands
from tests.cli.conftest import REPOSITORY

NAMES = ("compare", "dashboard", "evaluate", "export", "inspect", "recalibrate", "train", "verify")
# Runs `syncbn` with a command line and prints on the last line what it has imported.
PROGRAM = (
    "import sys\n"
    "from syncbn.cli import main\n"
    "try:\n"
    "    main()\n"
    "finally:\n"
    "    print(*(name for name in ('torch', 'hydra', 'lightning', 'omegaconf') if name in sys.modules))\n"
)


def syncbn(*words: str, module: str = "syncbn") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_overview_has_a_line_for_each_command_and_imports_nothing_heavy() -> None:
    assert set(NAMES) <= set(commands())
    for flag in ("--help", "-h", "help"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, flag], capture_output=True, text=True, check=True)
        *lines, imported = done.stdout.splitlines()
        assert imported == ""
        shown = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
        assert shown == commands()
        assert all(summary.endswith(".") for summary in shown.values())
        assert all(len(line) <= 120 for line in lines)


def test_without_a_command_the_overview_is_an_error() -> None:
    done = syncbn()
    assert (done.returncode, done.stdout) == (2, "")
    assert all(name in done.stderr for name in NAMES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "trian: no such command; did you mean 'train'? allowed: compare,"),
        (["train.py"], "train.py: no such command; did you mean 'train'?"),
        (["scripts/evaluate.py"], "scripts/evaluate.py: no such command; did you mean 'evaluate'?"),
        (["arguments"], "arguments: no such command"),  # a file beside the commands
        (["norm=group"], "norm=group: which command? syncbn train norm=group, say"),
        (["-m", "norm=group,sync"], "-m: which command?"),
        (["reproduce", "steps"], "reproduce is a script of the repository, not of the package: in a checkout, python"),
        (["scaling"], "scaling is a script of the repository, not of the package"),
    ],
)
def test_what_is_no_command_is_answered_in_a_line(words: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == "\n"  # nothing heavy was imported


def test_the_version_is_the_packages() -> None:
    assert syncbn("--version").stdout == "syncbn 0.1.0\n"


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_help_and_every_file_of_one_can_be_run(name: str) -> None:
    shown = [syncbn(name, "--help"), syncbn("--help", module=f"syncbn.cli.{name}")]
    assert [done.returncode for done in shown] == [0, 0], shown[0].stderr + shown[1].stderr
    assert shown[0].stdout == shown[1].stdout
    assert f"syncbn {name}" in shown[0].stdout


@pytest.mark.parametrize("module", ["syncbn", "syncbn.cli.train"])
def test_a_module_takes_the_words_of_the_command(module: str, tmp_path: Path) -> None:
    words = ["train"] if module == "syncbn" else []
    done = syncbn(*words, "norm=snyc", module=module)
    assert done.returncode == 2
    assert "did you mean 'sync'?" in done.stderr


def piped(words: str, after: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m syncbn {words} {after}"
    environment = {**os.environ, **environ}
    return subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("words", ["--help", "options", "options norm=sync"])
@pytest.mark.parametrize("reader", ["| true", "| head -1", ">&-"])
def test_a_reader_may_leave(words: str, reader: str) -> None:
    assert piped(words, reader).stderr == ""


def test_so_may_one_of_a_script() -> None:
    command = f"{sys.executable} scripts/train.py --help | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("Train a network")


def test_a_locale_without_our_letters_is_given_escapes() -> None:
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = piped("options norm=sync", "", **ascii_alone)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u03b3 (`weight`)" in done.stdout


@pytest.mark.parametrize("words", ["compare --help", "options norm=group"])
def test_without_docstrings_the_options_are_listed_all_the_same(words: str) -> None:
    whole, without = piped(words, ""), piped(words, "", PYTHONOPTIMIZE="2")
    assert (without.returncode, without.stderr) == (0, "")
    rows = [[line for line in done.stdout.splitlines() if line.startswith("  ")] for done in (whole, without)]
    assert rows[1] == rows[0][: len(rows[1])]
    assert rows[1]
