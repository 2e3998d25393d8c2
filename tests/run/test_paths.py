"""Paths on a command line, and interpolations that can't be resolved: told in one line, ready to paste."""

import re
import shlex
from pathlib import Path

import pytest

from syncbn.cli.arguments import OnRun
from syncbn.cli.evaluate import PARSER
from syncbn.run.command_line import CommandLine, read
from syncbn.run.compose import checked_configs
from syncbn.run.errors import UserError
from syncbn.run.overrides import parse
from syncbn.run.resume import resume_from

PATHS = [
    "/x/epoch=0-step=34.ckpt",
    "/新加卷2/last.ckpt",
    "/it's here/last.ckpt",
    "./a (1)/last.ckpt",
    "../[old]/last.ckpt",
    "/back\\slash/last.ckpt",
    "/plain/last.ckpt",
    "/with space/last.ckpt",
]


@pytest.mark.parametrize("path", PATHS)
def test_train_and_evaluate_take_a_path_as_it_is(path: str) -> None:
    line, _ = read([f"resume={path}"])
    (override,) = parse(line.overrides)
    assert override.value() == path
    options: OnRun = PARSER.read(["run=somewhere", f"checkpoint={path}"])
    assert options.checkpoint == Path(path)


@pytest.mark.parametrize("path", PATHS)
def test_both_take_it_quoted(path: str) -> None:
    if '"' in path or "\\" in path:
        return
    line, _ = read([f'resume="{path}"'])
    (override,) = parse(line.overrides)
    assert override.value() == path
    options: OnRun = PARSER.read(["run=somewhere", f'checkpoint="{path}"'])
    assert options.checkpoint == Path(path)


@pytest.mark.parametrize("value", ["epoch=0-step=34.ckpt", "新加卷2", "a (1)", "it's", 'say "so"', "100%=all"])
def test_what_cannot_be_read_is_printed_ready_to_paste(value: str) -> None:
    with pytest.raises(UserError, match="quote its value, ") as raised:
        parse([f"task_name={value}"])
    pasted = shlex.split(str(raised.value).partition("quote its value, ")[2])
    assert parse(pasted)[0].value() == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=${nope}", "optimizer.lr: Interpolation key 'nope' not found"),
        ("trainer.max_epochs=${data.nope}", "trainer.max_epochs: Interpolation key 'data.nope' not found"),
        ("data.batch_size=${oc.env:NO_SUCH_VARIABLE}", "data.batch_size: .*'NO_SUCH_VARIABLE' not found"),
    ],
)
def test_an_interpolation_that_leads_nowhere_is_told_with_its_key(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked_configs(CommandLine([override, "run_id=a"]))


def test_the_message_is_one_line() -> None:
    with pytest.raises(UserError) as raised:
        checked_configs(CommandLine(["optimizer.lr=${nope}", "run_id=a"]))
    assert not re.search(r"\n", str(raised.value))


@pytest.mark.parametrize(
    ("override", "here"),
    [
        ("ckpt_path=x.ckpt", r"ckpt_path: no such group or key; here it is resume=<path>"),
        ("trainer.resume_from_checkpoint=x.ckpt", r"no such key; here it is resume=<path>, or resume=auto"),
        ("trainer.lr=0.1", r"trainer.lr: no such key; here it is optimizer.lr"),
        ("gpus=2", r"here it is trainer.devices"),
        ("logger.wandb.offline=true", r"logger.wandb: no such key; add logger=wandb"),
        ("callbacks.ema.decay=0.9", r"callbacks.ema: no such key; add it to callbacks=\[...\]"),
        ("trainer.max_time=3600", r"trainer.max_time: expected .* or \{seconds: 3600\}, got 3600"),
        ("trainer.max_steps=0", r"trainer.max_steps: expected an integer at least 1 or -1, got 0"),
        ("trainer.epochs=3", r"trainer.epochs: no such key; here it is trainer.max_epochs"),
    ],
)
def test_names_of_other_command_lines_are_answered_with_ours(override: str, here: str) -> None:
    with pytest.raises(UserError, match=here):
        checked_configs(CommandLine([override, "run_id=a"]))


def test_a_checkpoint_of_another_run_does_not_take_the_place_of_a_run(tmp_path: Path) -> None:
    for run in ("one", "two"):
        (tmp_path / run / "checkpoints").mkdir(parents=True)
        (tmp_path / run / "checkpoints" / "last.ckpt").write_bytes(b"")
    other = tmp_path / "two" / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"one' holds a run already, and .*last.ckpt' is of another: add resume=auto"):
        resume_from(str(other), tmp_path / "one")
    for place in (tmp_path / "two", other.parent):
        with pytest.raises(
            ValueError, match=r"is a folder, not a checkpoint: give the file, '.*two/checkpoints/last.c"
        ):
            resume_from(str(place), tmp_path / "new")
    with pytest.raises(ValueError, match="damaged"):
        resume_from(str(other), tmp_path / "two")  # one of its own is read
    with pytest.raises(ValueError, match="damaged"):
        resume_from(str(other), tmp_path / "new")


@pytest.mark.parametrize("word", ["last", "best", "yes", "AUTO"])
def test_a_word_for_a_checkpoint_is_answered_with_auto(word: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"resume={word}: resume=auto goes on with this run's last checkpoint"):
        resume_from(word, tmp_path)


def test_a_tilde_behind_a_key_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell leaves it, and a folder named ~ would be made."""
    monkeypatch.setenv("HOME", "/home/me")
    line, _ = read(["output_root=~/runs", "resume=~/a b.ckpt", "tags=[~/x]", "~logger"])
    assert line.overrides[0] == "output_root=/home/me/runs"
    assert "/home/me/a b.ckpt" in line.overrides[1]
    assert line.overrides[2:] == ["tags=[~/x]", "~logger"]
