"""Flags and overrides of `syncbn train`, in all positions and spellings."""

import shlex

import pytest

from syncbn.run.command_line import read
from syncbn.run.errors import UserError


@pytest.mark.parametrize(
    ("line", "overrides", "flags"),
    [
        ("norm=sync,group -m", ["norm=sync,group"], {"multirun": True}),
        ("-m norm=sync,group", ["norm=sync,group"], {"multirun": True}),
        ("seed=1 -m norm=sync,group seed=2", ["seed=1", "norm=sync,group", "seed=2"], {"multirun": True}),
        ("norm=group --cfg job", ["norm=group"], {"cfg": "job"}),
        ("-c job norm=group --resolve", ["norm=group"], {"cfg": "job", "resolve": True}),
        ("--cfg job -p norm norm=group", ["norm=group"], {"cfg": "job", "package": "norm"}),
        ("norm=group --info", ["norm=group"], {"info": "all"}),
        ("--info norm=group", ["norm=group"], {"info": "all"}),
        ("-i searchpath norm=group", ["norm=group"], {"info": "searchpath"}),
        ("norm=group --config-dir .", ["norm=group"], {"config_dir": "."}),
        ("-cd . norm=group -cn train", ["norm=group"], {"config_dir": ".", "config_name": "train"}),
        ("--norm=group", ["norm=group"], {}),
        ("--norm=group --optimizer.lr=0.1 -m", ["norm=group", "optimizer.lr=0.1"], {"multirun": True}),
        ("--+trainer.max_steps=1 --~logger --run_id=a", ["+trainer.max_steps=1", "run_id=a"], None),
        ("--run -r norm=group", ["norm=group"], {"run": True}),
        ("--multi norm=group", ["norm=group"], {"multirun": True}),  # argparse's abbreviation
        ("run_id=42 norm=group", ["run_id='42'", "norm=group"], {}),
        ("run_id=1e3", ["run_id='1e3'"], {}),
        ("run_id=2026-01-31", ["run_id='2026-01-31'"], {}),
        ("run_id=first run_id='7'", ["run_id=first", "run_id='7'"], {}),
        ("norm=group -h", ["norm=group"], {"help": True}),
        ("--hydra-help", [], {"hydra_help": True}),
        ("-sc query=bash", ["query=bash"], {"shell_completion": True}),
        ("", [], {}),
    ],
)
def test_flags_stand_anywhere(line: str, overrides: list[str], flags: dict[str, object] | None) -> None:
    if flags is None:
        with pytest.raises(UserError, match="--~logger: no such flag"):
            read(shlex.split(line))
        return
    found, args = read(shlex.split(line))
    assert (found.overrides, args.overrides) == (overrides, overrides)
    unset = {name: value for name, value in vars(args).items() if value not in (None, False) and name != "overrides"}
    assert unset == flags
    assert found.multirun is flags.get("multirun", False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--task gan", r"--task: no such flag; an option of the config is written task=gan$"),
        ("norm=group --task gan seed=1", r"written task=gan$"),
        ("--train", r"--train: no such flag; an option of the config is written train=<value>"),
        ("--seed norm=group", r"written seed=<value>"),
        ("-norm=group", r"-norm=group: no such flag; an option of the config is written norm=group$"),
        ("--mutlirun norm=a,b", r"--mutlirun: no such flag; did you mean '--multirun'\?"),
        ("--config_name=x", None),
        ("--run=3", r"--run is a flag of Hydra's and takes no value; an option of the config is run=3"),
        ("--cfg", r"argument --cfg/-c: expected one argument"),
        ("--cfg jbo", r"invalid choice: 'jbo' \(choose from .*job"),
        ("--cfg norm=group", r"invalid choice"),
        ("-m --cfg job", r"--multirun and --cfg: one at a time"),
        ("-m --info", r"--multirun and --info: one at a time"),
        ("--resolve norm=group", r"--resolve goes with --cfg or --help"),
        ("-cd nowhere", r"--config-dir nowhere: there is no such folder"),
        ("-cp nowhere", r"--config-path nowhere: there is no folder /.*/nowhere"),
    ],
)
def test_a_flag_that_is_none_is_answered_with_what_to_write(line: str, message: str | None) -> None:
    if message is None:  # an override: the check of keys answers it
        assert read(shlex.split(line))[0].overrides == ["config_name=x"]
        return
    with pytest.raises(UserError, match=message):
        read(shlex.split(line))


def test_a_config_path_is_relative_to_where_the_user_is(tmp_path, monkeypatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    line, args = read(["--config-path", "mine", "-cn", "a"])
    assert (line.config_path, line.config_name) == (str(tmp_path / "mine"), "a")
    assert args.config_path == str(tmp_path / "mine")
    assert read(["-cp", "pkg://mine.conf"])[0].config_path == "pkg://mine.conf"
