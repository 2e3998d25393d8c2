"""A user's keys appear in none of a run's files and never on the screen."""

from pathlib import Path

import pytest

from tests.cli.conftest import SHORT, run_script

KEYS = {
    "config": "key-of-the-config-1234",
    "override": "key-of-the-override-1234",
    "environment": "key-of-the-env-1234",
}
DATA = """
import os
from syncbn.data import DigitsDataModule

class Data(DigitsDataModule):
    def __init__(self, access, fails, token, **options):
        assert token == "key-of-the-override-1234" and access["password"] == "key-of-the-config-1234"
        assert access["api_key"] == os.environ["SITE_API_KEY"]
        super().__init__(**options)
        if fails:
            raise RuntimeError(f"no access with {token}, {access['password']} and {access['api_key']}")
"""
CONFIG = """
defaults: [digits]
_target_: with_keys.Data
fails: false
access:
  password: key-of-the-config-1234
  api_key: ${oc.env:SITE_API_KEY}
"""


@pytest.mark.slow
def test_a_sweep_with_keys_of_all_kinds_leaves_none(tmp_path: Path) -> None:
    """One job trains, with W&B, and one fails with all keys in its message."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "with_keys.py").write_text(DATA)
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "with_keys.yaml").write_text(CONFIG)
    arguments = ["-m", "--config-dir", "conf", "data=with_keys", f"+data.token={KEYS['override']}", "run_id=sweep"]
    done = run_script(
        tmp_path,
        "train",
        *arguments,
        "data.fails=false,true",
        "logger=many_loggers",
        *SHORT,
        "test=false",
        SITE_API_KEY=KEYS["environment"],
        SYNCBN_ALLOWED_PACKAGES="with_keys",
        PYTHONPATH=str(tmp_path / "code"),
        WANDB_MODE="offline",
    )
    assert done.code == 1
    assert "RuntimeError: no access with <redacted>, <redacted> and <redacted>" in done.err
    outputs = tmp_path / "outputs" / "sweep"
    assert (outputs / "0" / "checkpoints" / "last.ckpt").is_file()
    assert "token: <redacted>" in (outputs / "0" / ".hydra" / "config.yaml").read_text()
    assert "api_key: ${oc.env:SITE_API_KEY}" in (outputs / "0" / ".hydra" / "config.yaml").read_text()
    assert "+data.token=<redacted>" in (outputs / "0" / ".hydra" / "overrides.yaml").read_text()
    files = [path for path in outputs.rglob("*") if path.is_file()]
    assert {".wandb", ".yaml", ".csv", ".ckpt"} <= {path.suffix for path in files}
    for name, key in KEYS.items():
        assert [str(path) for path in files if key.encode() in path.read_bytes()] == [], name
        assert key not in done.out + done.err, name


def test_a_run_outside_of_the_output_root_is_refused(tmp_path: Path) -> None:
    done = run_script(tmp_path, "train", "hydra.run.dir=../escaped", "debug=fast", *SHORT)
    assert done.code == 2
    assert "escaped' is outside of output_root=outputs; leave hydra.run.dir" in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path.parent / "escaped").exists()
