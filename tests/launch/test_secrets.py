"""Secrets are recognized by name and redacted in text."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from syncbn.launch import secrets
from syncbn.launch.secrets import MASK, learn, redacted

KEY = "0123456789abcdef-not-a-real-key"


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(secrets, "_known", set())
    return


@pytest.mark.parametrize(
    "source",
    [
        {"WANDB_API_KEY": KEY},
        {"AWS_SECRET_ACCESS_KEY": KEY},
        {"data": {"sources": [{"hf_token": KEY}]}},
        [f"+data.token={KEY}"],
        [f"data={{_target_:a.B,password:'{KEY}'}}"],
        [f'+logger.api_key="{KEY}"', "norm=sync"],
    ],
    ids=str,
)
def test_a_secret_is_known_by_its_name_and_hidden_wherever_it_turns_up(source: object) -> None:
    learn(source)
    assert redacted(f"Error: can't log in as {KEY}!") == f"Error: can't log in as {MASK}!"
    assert KEY not in str(redacted({"url": f"https://me:{KEY}@example.org", "a": [KEY, 3, None]}))
    assert KEY not in str(redacted(source))


def test_what_is_none_stays() -> None:
    config = {
        "num_tokens": "12345678",
        "token_dim": 64,
        "cls_token": True,
        "token": "${oc.env:HF_TOKEN}",
        "password": None,
        "monitor": "val/loss",
    }
    learn(config)
    assert redacted(config) == config
    assert redacted("norm=sync data.batch_size=32 +data.token=${oc.env:HF_TOKEN}").endswith("${oc.env:HF_TOKEN}")


def test_a_short_one_is_hidden_where_its_name_stands_and_nowhere_else() -> None:
    learn(["+data.password=ab1"])
    assert redacted(["+data.password=ab1", "cab1"]) == [f"+data.password={MASK}", "cab1"]
    assert redacted({"password": "ab1"}) == {"password": MASK}


def test_nothing_that_is_printed_shows_it() -> None:
    program = (
        "import sys, os\n"
        "from syncbn.launch.secrets import guard_the_screen\n"
        "guard_the_screen(); guard_the_screen()\n"
        "seen, before = [], sys.stdout.write\n"
        "sys.stdout.write = lambda text: (seen.append(text), before(text))[1]\n"  # as W&B does
        "print('key', os.environ['MY_API_KEY'])\n"
        "print('in between', os.environ['MY_API_KEY'] in ''.join(seen), sys.stdout.isatty())\n"
        "raise RuntimeError('refused: ' + os.environ['MY_API_KEY'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"MY_API_KEY": KEY}, check=False
    )
    assert done.stdout.splitlines() == [f"key {MASK}", "in between False False"]
    assert done.stderr.strip().endswith(f"RuntimeError: refused: {MASK}")
    assert KEY not in done.stderr
