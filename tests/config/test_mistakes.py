"""Messages for misspelt or impossible overrides, before anything is imported or started."""

import subprocess
import sys

import pytest

from syncbn.run.command_line import CommandLine
from syncbn.run.compose import checked_configs
from syncbn.run.errors import UserError

MISTAKES = {
    "nrom=sync": r"nrom: no such group or key; did you mean 'norm'\? allowed: .*norm",
    "norm=snyc": r"norm=snyc: no such choice; did you mean 'sync'\? allowed: .*batch, .*group",
    "experiment=smal_batch": r"did you mean 'small_batch'\?",
    "trainer.max_epoch=3": r"trainer.max_epoch: no such key; did you mean 'max_epochs'\?",
    "+trainer.max_epoch=3": r"trainer.max_epoch: no such key; did you mean 'max_epochs'\?",
    "data.batch_size=abc": r"data.batch_size: expected an integer at least 1, got 'abc'",
    "data.batch_size=0": r"data.batch_size: expected an integer at least 1, got 0",
    "optimizer.lr=-1": r"optimizer.lr: expected a number above 0, got -1",
    "trainer.precision=bf17": r"trainer.precision: got 'bf17'; .*allowed: .*bf16-mixed",
    "norm=group norm.groups=-4": r"norm.groups: expected an integer at least 1 or auto, got -4",
    "norm=sync norm.groups=4": r"norm.groups: no such key; .*'groups' is an option of norm=group",
    "+norm.groups=4": r"norm.groups: no such key of norm=sync.*option of norm=group",
    "~norm": r"a run needs a norm; choose one: adaptive, batch",
    "norm=null": r"a run needs a norm; choose one: adaptive, batch",
    "scheduler=null": r"to go without, write ~scheduler",
    "logger=none": r"logger=none: to go without, write ~logger",
    "logger=false": r"logger=false: to go without, write ~logger",
    "scheduler.warmup_fraction=1": r"scheduler.warmup_fraction: expected a number at least 0 and below 1, got 1",
    "task.label_smoothing=1": r"task.label_smoothing: expected a number at least 0 and below 1, got 1",
    "optimizer=adamw optimizer.betas=[0.9,1.5]": r"betas: expected a list of 2, each a number .* below 1",
    "optimizer=adamw optimizer.betas=[0.9]": r"betas: expected a list of 2, each a number .* below 1",
    "trainer.limit_train_batches=0": r"limit_train_batches: expected an integer at least 1 or a number above 0",
    "trainer.max_epochs=0": r"trainer.max_epochs: expected an integer at least 1 or -1 or null, got 0",
    "callbacks.early_stopping.patience=-1": r"early_stopping.patience: expected an integer at least 0, got -1",
    "callbacks.checkpoint.mode=minn": r"callbacks.checkpoint.mode: got 'minn'; did you mean 'min'\? allowed: max, min",
    "seed=-1": r"seed: expected an integer at least 0",
    "run_id=../escape": r"run_id: a run id is 1 to 100 letters",
    "paths.output_dir=/elsewhere/x": r"output_dir: '/elsewhere/x' is outside of output_root=outputs; set output_root",
    "paths.output_dir=${output_root}/../x": r"paths.output_dir: 'outputs/../x' is outside of output_root",
    "callbacks.checkpoint.dirpath=/elsewhere": r"checkpoint.dirpath: '/elsewhere' is outside of the run's folder",
    "callbacks.checkpoint.filename=../../../x": r"callbacks.checkpoint.filename: .* is outside of the run's folder",
    "callbacks.plots.folder=.": r"callbacks.plots.folder: '.' is outside",
    "logger=tensorboard logger.tensorboard.version=../../x": r"logger.tensorboard.version: .* is outside",
    "norm=sync,batch": r"is a sweep of several values: add -m to run them all$",
    "output_root=./a,b": r"add -m to run them all; if it is one, quote it: 'output_root=\"./a,b\"'$",
    "+trainer.check_val_every_n_epoch=2": r"leave the \+ out, trainer.check_val_every_n_epoch is there already",
    "~model._target_": r"model._target_: missing; it names what is built, such as my_package.MyClass",
    "+callbacks.mine.width=3": r"callbacks.mine._target_: missing",
    "data.batch_size=[1": r"can't read 'data.batch_size=\[1'",
    "optimizer._target_=os.system": r"optimizer._target_: 'os.system' is not in an allowed package",
    "+model.hook._target_=builtins.eval": r"model.hook._target_: 'builtins.eval' is not in an allowed package",
    "data._target_=torch.load": r"data._target_: 'torch.load' is not in an allowed package",
}


@pytest.fixture(autouse=True)
def _run_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_is_answered_with_what_is_allowed(overrides: str) -> None:
    with pytest.raises(UserError, match=MISTAKES[overrides]):
        checked_configs(CommandLine(overrides.split()))


@pytest.mark.parametrize("override", ["norm=sync,snyc", "optimizer.lr=0.1,-1", "norm=choice(sync,snyc)"])
def test_a_sweep_is_refused_whole_when_one_of_its_jobs_is_wrong(override: str) -> None:
    with pytest.raises(UserError, match=r"snyc|got -1"):
        checked_configs(CommandLine([override], multirun=True))


def test_a_sweep_is_one_config_a_job() -> None:
    configs = checked_configs(CommandLine(["norm=sync,group", "seed=range(3)", "+norm.name=sync"][:2], multirun=True))
    assert [(config["norm"]["name"], config["seed"]) for config in configs] == [
        (norm, seed) for norm in ("sync", "group") for seed in (0, 1, 2)
    ]


def test_packages_of_ones_own_are_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    line = CommandLine(["optimizer._target_=mypackage.MyOptimizer"])
    with pytest.raises(UserError, match="SYNCBN_ALLOWED_PACKAGES"):
        checked_configs(line)
    monkeypatch.setenv("SYNCBN_ALLOWED_PACKAGES", "other, mypackage")
    assert checked_configs(line)[0]["optimizer"]["_target_"] == "mypackage.MyOptimizer"


def test_a_mistake_ends_in_one_line_and_exit_code_2_before_torch_is_imported() -> None:
    program = (
        "import sys\n"
        "sys.argv = ['train.py', 'norm=snyc']\n"
        "from syncbn.cli import run\n"
        "try:\n"
        "    run('train')\n"
        "finally:\n"
        "    print('torch' in sys.modules, 'lightning' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean 'sync'?" in done.stderr
    assert done.stdout.split() == ["False", "False"]
