"""Jobs of a command line: search paths, extended lists, primary configs, all kinds of sweeps."""

from pathlib import Path

import pytest

from syncbn.run.command_line import CommandLine, read
from syncbn.run.compose import choice_of, config_groups, config_of, jobs_of
from syncbn.run.errors import UserError
from syncbn.run.overrides import literal, parse


@pytest.fixture
def more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of further configs, below the current folder."""
    files = {
        "norm/two.yaml": "defaults: [group, _self_]\ngroups: 2\n",
        "experiment/grid.yaml": (
            "# @package _global_\nhydra:\n  mode: MULTIRUN\n"
            "  sweeper:\n    params:\n      norm: sync,two\n      seed: 1,2\n"
        ),
        "experiment/ablation/wide.yaml": "# @package _global_\ntags: [wide]\n",
        "experiment/unpackaged.yaml": "defaults:\n  - override /norm: group\n",
        "experiment/broken.yaml": "# @package _global_\ntags: [mine\n",
        "data/small/few.yaml": "_target_: syncbn.data.DigitsDataModule\nbatch_size: 3\n",
        "experiment/tagged.yaml": "# @package _global_\ntags: [mine]\n",
        "logger/there.yaml": (
            "there:\n  _target_: syncbn.training.loggers.RunFolderCSVLogger\n  save_dir: ${hydra:runtime.output_dir}\n"
        ),
        "mine.yaml": "defaults: [train, _self_]\ntask_name: mine\n",
        "searching.yaml": f"defaults: [train, _self_]\nhydra:\n  searchpath: ['file://{tmp_path}/deeper']\n",
    }
    for name, text in files.items():
        (tmp_path / "more" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "more" / name).write_text(text)
    (tmp_path / "deeper" / "norm").mkdir(parents=True)
    (tmp_path / "deeper" / "norm" / "eight.yaml").write_text("defaults: [group, _self_]\ngroups: 8\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")
    return tmp_path / "more"


def line(*words: str) -> CommandLine:
    return read(words)[0]


@pytest.mark.parametrize(
    "words",
    [
        ["norm=two", "--config-dir", "more"],
        ["-cd", "more", "norm=two"],
        ["norm=two", "hydra.searchpath=[more]"],
        ["norm=two", "hydra.searchpath=[file://more]"],
        ["hydra.searchpath=[deeper,more]", "norm=two"],
        ["hydra.searchpath=[deeper]", "norm=two", "-cd", "more"],
    ],
)
def test_choices_of_other_folders_are_checked_as_ours(more: Path, words: list[str]) -> None:
    (config,) = jobs_of(line(*words)).configs
    assert (config["norm"]["name"], config["norm"]["groups"]) == ("group", 2)
    with pytest.raises(UserError, match=r"norm=twoo: no such choice; did you mean 'two'\? allowed: .*group.*sync"):
        jobs_of(line(*(word.replace("norm=two", "norm=twoo") for word in words)))


def test_a_choice_may_be_in_a_folder_of_its_group(more: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = jobs_of(line("experiment=ablation/wide", "-cd", "more")).configs
    assert config["tags"] == ["wide"]
    with pytest.raises(UserError, match=r"experiment=ablation/wid: no such choice; did you mean 'ablation/wide'\?"):
        jobs_of(line("experiment=ablation/wid", "-cd", "more"))
    (more.parent / "pyproject.toml").write_text("[tool.syncbn]\n")
    more.rename(more.parent / "conf")
    assert choice_of("data", "small/few") == {"_target_": "syncbn.data.DigitsDataModule", "batch_size": 3}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("unpackaged", "Could not override 'norm@experiment.norm'. The file's first line must be: # @package _global_"),
        ("broken", r"while parsing a flow sequence in \".*broken.yaml\", line 2, column 7 expected"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_the_file(more: Path, choice: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        jobs_of(line(f"experiment={choice}", "-cd", "more"))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("[/absent]", r"hydra.searchpath: there is no folder or package file:/{3}absent"),
        ("[pkg://not_installed.conf]", r"there is no folder or package pkg://not_installed.conf"),
        ("more", r"must be a list of strings. Got: more; write hydra.searchpath=\[<folder>,pkg://<package>\]"),
    ],
)
def test_a_place_that_is_not_there_is_told(more: Path, place: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        jobs_of(line(f"hydra.searchpath={place}"))


def test_another_primary_config_is_found_beside_ours_or_in_our_place(more: Path) -> None:
    assert jobs_of(line("-cd", "more", "-cn", "mine")).configs[0]["task_name"] == "mine"
    assert jobs_of(line("-cd", "more", "-cn", "mine.yaml")).configs[0]["task_name"] == "mine"
    found = jobs_of(line("-cd", "more", "-cn", "searching", "norm=eight"))
    assert found.configs[0]["norm"]["groups"] == 8  # of a folder that the config itself names
    with pytest.raises(UserError, match=r"--config-name mien: no such config; did you mean 'mine'\? allowed: mine, "):
        jobs_of(line("-cd", "more", "-cn", "mien"))
    with pytest.raises(UserError, match=r"--config-name train: no such config; allowed: mine, searching"):
        jobs_of(line("-cp", "more"))


def test_a_runs_config_is_given_again(more: Path) -> None:
    from omegaconf import OmegaConf

    OmegaConf.save(config_of(["norm=group", "run_id=first"]), more / "config.yaml")
    (config,) = jobs_of(line("-cp", "more", "-cn", "config", "run_id=second", "norm.groups=4")).configs
    assert (config["norm"]["groups"], config["run_id"], config["model"]["_target_"]) == (
        4,
        "second",
        "syncbn.models.resnet.resnet18",
    )


@pytest.mark.parametrize(
    ("words", "tags"),
    [
        (["tags+=[x]"], ["dev", "x"]),
        (["tags+=x"], ["dev", "x"]),
        (["tags+=[x,'a b']", "tags+=[y]"], ["dev", "x", "a b", "y"]),
        (["tags+=[y]", "tags=[a]"], ["a", "y"]),
        (["tags+=x,y"], ["dev", "x", "y"]),
        (["--tags+=[x]"], ["dev", "x"]),
        (["-cd", "more", "experiment=tagged", "tags+=[x]"], ["mine", "x"]),
    ],
)
def test_a_list_is_extended(more: Path, words: list[str], tags: list[object]) -> None:
    (config,) = jobs_of(line(*words)).configs
    assert config["tags"] == tags
    written = jobs_of(line(*words)).line.overrides  # what Hydra is given
    assert jobs_of(CommandLine(written, config_dir=more)).configs[0]["tags"] == tags


@pytest.mark.parametrize(
    "value",
    [
        "a",
        "a b",
        "it's",
        'say "so"',
        "a\\b",
        "a\\",
        "a\\\\",
        "\\'",
        "\\\\'b\\",
        "a,b",
        "[a]",
        "${seed}",
        "",
        "null",
        "1",
        1,
        1.5,
        1e-9,
        True,
        None,
    ],
)
def test_a_literal_is_read_back(value: object) -> None:
    for whole in (value, [value, "b"], {"a": value}):
        (override,) = parse([f"key={literal(whole)}"])
        assert override.value() == whole
        assert not override.is_sweep_override()


def test_a_group_of_several_choices_is_extended(more: Path) -> None:
    (config,) = jobs_of(line("callbacks+=[ema]")).configs
    assert {"ema", "checkpoint", "plots"} <= set(config["callbacks"])
    (config,) = jobs_of(line("callbacks=none", "callbacks+=ema")).configs
    assert set(config["callbacks"]) == {"ema", "ema_recalibrate"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed+=[1]"], r"seed\+=\.\.\.: seed is no list"),
        (["nosuch+=[1]"], r"nosuch\+=\.\.\.: nosuch is no list"),
        (["-cd", "more", "-m", "tags+=[x]", "experiment=tagged,small_batch"], r"isn't the same in all jobs"),
        (["tags+=[x"], r"can't read 'tags=\[x'"),
    ],
)
def test_what_is_no_list_is_told(more: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jobs_of(line(*words))


def test_a_sweep_may_stand_in_a_config(more: Path) -> None:
    found = jobs_of(line("-cd", "more", "experiment=grid"))
    assert found.is_sweep
    assert [(config["norm"]["name"], config["seed"]) for config in found.configs] == [
        ("sync", 1),
        ("sync", 2),
        ("group", 1),
        ("group", 2),
    ]
    with pytest.raises(UserError, match=r"trainer.max_epochs: expected an integer at least 1"):
        jobs_of(line("-cd", "more", "experiment=grid", "trainer.max_epochs=1,0"))


def test_a_reference_to_hydras_own_config_is_resolved(more: Path) -> None:
    (config,) = jobs_of(line("-cd", "more", "logger=there", "run_id=first")).configs
    assert config["logger"]["there"]["save_dir"] == "outputs/first"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume=outputs/epoch=3.ckpt"], r"quote its value, 'resume=\"outputs/epoch=3.ckpt\"'"),
        (["--resume=epoch=3.ckpt"], r"'resume=\"epoch=3.ckpt\"'"),
        (["norm", "=", "group"], r"can't read 'norm': write group=choice or key=value, without spaces around the ="),
        (["norm: group"], r"can't read 'norm: group': write group=choice"),
        ([""], r"can't read ''"),
        (["+experiment=small_batch"], r"\+experiment=small_batch: leave the \+ out, experiment is there already"),
        (["+norm=group"], r"\+norm=group: leave the \+ out"),
        (["-m", "hydra/launcher=submitit_lcal"], r"did you mean 'submitit_local'\? .*pip install \"syncbn\[slurm\]\""),
        (["-m", "hydra/sweeper=optuna"], r"hydra/sweeper=optuna: .* pip install hydra-optuna-sweeper"),
        (["hydra.run.dirr=x"], r"hydra.run.dirr: no such key; did you mean 'dir'"),
        (["hydra.nosuch=x"], r"hydra.nosuch: no such key; allowed: callbacks, "),
        (["hydra/nosuch=x"], r"hydra/nosuch: no such group or key"),
        (["norm@elsewhere=group"], r"Could not override 'norm@elsewhere'"),
        (["trainer.gpus=1"], r"trainer.gpus: no such key; here it is trainer.devices"),
    ],
)
def test_how_people_trip_is_answered(more: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jobs_of(line(*words))


def test_a_path_with_an_equals_sign_is_read_where_it_is_quoted(more: Path) -> None:
    for word in ('resume="outputs/epoch=3.ckpt"', "resume='outputs/epoch=3.ckpt'", "resume=outputs/epoch\\=3.ckpt"):
        assert jobs_of(line(word)).configs[0]["resume"] == "outputs/epoch=3.ckpt"


def test_a_choice_alone_keeps_its_interpolations(more: Path) -> None:
    assert "seed: ${seed}" in str(choice_of("data", "digits")) or "${seed}" in str(choice_of("data", "digits"))
    assert "digits_shifted" in config_groups()["data"]
    assert not [group for group in config_groups() if group.startswith("hydra")]
