"""A project with a network, data and a task of its own, none of which knows this package: in real processes."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

import syncbn
from tests.cli.conftest import Finished, run_script
from tests.run import guest_package

SHORT = ("trainer.accelerator=cpu", "trainer.log_every_n_steps=3", "trainer.max_epochs=2")
CHOICES = {
    "model": ("Net",),
    "data": ("Data", "OfDicts", "WithoutEvaluation"),
    "task": ("Task", "Whole", "Later", "Uncalled", "ByHand", "OwnCallbacks", "Interrupted"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project."""
    root = tmp_path_factory.mktemp("project")
    (root / "guest_project").mkdir()
    (root / "guest_project" / "__init__.py").touch()
    shutil.copy(guest_package.__file__, root / "guest_project" / "parts.py")
    (root / "pyproject.toml").write_text('[tool.syncbn]\npackages = ["guest_project"]\n')
    for group, choices in CHOICES.items():
        (root / "conf" / group).mkdir(parents=True)
        for choice in choices:
            (root / "conf" / group / f"{choice}.yaml").write_text(f"_target_: guest_project.parts.{choice}\n")
    return root


@pytest.fixture(scope="module")
def one(project: Path) -> Finished:
    """A run in one process, named `one`."""
    return run_script(project, "train", "model=Net", "data=Data", "task=Task", "run_id=one", *SHORT)


def test_a_task_is_given_what_it_asks_for_and_its_metrics_are_gone_by(one: Finished) -> None:
    assert one.code == 0, one.err
    lines = one.out.splitlines()
    assert lines[0] == "network:       Net, 123 parameters, norm=sync in the place of 2 batch norm(s)"
    assert "no val/loss:   Task doesn't log it; callbacks.checkpoint, callbacks.early_stopping go by val_loss" in lines
    assert any(line.startswith("epoch 2/2  train_loss ") and "val_loss" in line for line in lines)
    assert any(line.startswith("test:          test_acc 0.") for line in lines)
    assert "model, optimizer, scheduler: these hyper-parameters are objects, and aren't kept in checkpoints" in one.err
    assert "Traceback" not in one.err


@pytest.mark.filterwarnings("ignore:Attribute 'model' is an instance of")  # Lightning's advice to the guest
def test_the_run_is_evaluated_and_loaded(one: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_script(one.folder, "evaluate", "run=outputs/one", "trainer.enable_progress_bar=false")
    assert done.code == 0, done.err
    (test,) = [line for line in done.out.splitlines() if line.startswith("test:")]
    assert test in one.out
    monkeypatch.chdir(one.folder)
    net, config = syncbn.load_run("outputs/one")
    assert type(net).__name__ == "Net"
    assert not net.training
    assert config.model.in_channels == guest_package.CHANNELS  # found in the first batch
    state = torch.load("outputs/one/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(net.state_dict(), {key.removeprefix("backbone."): value for key, value in state.items()})


def test_the_run_goes_on_by_the_same_metric(one: Finished) -> None:
    shutil.copytree(one.folder / "outputs" / "one", one.folder / "outputs" / "longer")
    choices = ("model=Net", "data=Data", "task=Task", "run_id=longer", "resume=auto")
    done = run_script(one.folder, "train", *choices, *SHORT[:2], "trainer.max_epochs=3")
    assert done.code == 0, done.err
    assert "Please add the following callbacks" not in done.err
    with (one.folder / "outputs" / "longer" / "metrics.csv").open(newline="") as file:
        epochs = [row["epoch"] for row in csv.DictReader(file) if row["val_loss"]]
    assert epochs == ["0", "1", "2"]


@pytest.mark.distributed
def test_two_ranks_share_the_data(project: Path) -> None:
    arguments = ("model=Net", "data=Data", "task=Task", "run_id=two", "trainer=ddp", "norm=sync")
    done = run_script(project, "train", *arguments, *SHORT, torchrun=2)
    assert done.code == 0, done.err
    assert "training:      2 epoch(s), 6 steps" in done.out  # 24 samples, 4 of each rank
    assert done.out.count("test_acc") == 1


@pytest.mark.distributed
@pytest.mark.slow
def test_spawned_ranks_import_the_project_too(project: Path) -> None:
    arguments = ("model=Net", "data=Data", "task=Task", "run_id=sim", "trainer=ddp_sim")
    done = run_script(project, "train", *arguments, *SHORT)
    assert done.code == 0, done.err
    assert "Please add the following callbacks" not in done.err
    assert "test_acc" in done.out


def test_a_task_that_optimizes_by_hand_says_what_does_not_go_with_it(project: Path) -> None:
    done = run_script(project, "train", "task=ByHand", "data=OfDicts", *SHORT)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert (
        "ByHand optimizes by hand, where the trainer can't clip gradients: add trainer.gradient_clip_val=null"
        in done.err
    )


@pytest.mark.distributed
def test_two_optimizers_by_hand_and_batches_of_dicts_on_two_ranks(project: Path) -> None:
    arguments = ("task=ByHand", "data=OfDicts", "run_id=hand", "trainer=ddp", "trainer.gradient_clip_val=null")
    done = run_script(project, "train", *arguments, *SHORT, torchrun=2)
    assert done.code == 0, done.err
    assert "callbacks.checkpoint, callbacks.early_stopping go by loss/validation" in done.out
    assert "test:" not in done.out  # there is none
    refused = run_script(project, "evaluate", "run=outputs/hand")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "ByHand has no test_step, or OfDicts no test_dataloader" in refused.err


def test_a_task_with_callbacks_of_its_own_keeps_the_checkpoint_to_go_on_from(project: Path) -> None:
    arguments = ("model=Net", "data=Data", "task=OwnCallbacks", "run_id=own")
    done = run_script(project, "train", *arguments, *SHORT)
    assert done.code == 0, done.err
    assert {path.name for path in (project / "outputs" / "own" / "checkpoints").iterdir()} >= {"mine.ckpt", "last.ckpt"}
    assert "go by" not in done.out  # its own callbacks say what they go by
    again = run_script(project, "train", *arguments, *SHORT[:2], "trainer.max_epochs=3", "resume=auto")
    assert again.code == 0, again.err
    assert "resumed:       after step 12" in again.out


def test_a_task_without_a_forward_is_evaluated_and_not_called(project: Path) -> None:
    done = run_script(project, "train", "task=Uncalled", "data=Data", "run_id=uncalled", *SHORT)
    assert done.code == 0, done.err
    assert "test:          acc 0." in done.out
    again = run_script(project, "evaluate", "run=outputs/uncalled")
    assert again.code == 0, again.err
    refused = run_script(project, "export", "run=outputs/uncalled")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "Uncalled has no forward, by which its network would be called: add forward(self, images)" in refused.err


def test_layers_that_are_made_late_are_converted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_script(project, "train", "task=Later", "data=WithoutEvaluation", "norm=ghost", "run_id=late", *SHORT)
    assert done.code == 0, done.err
    assert "network:       Later, 123 parameters, norm=ghost in the place of 2 batch norm(s)" in done.out
    assert "have no metric: the best checkpoint is the last one" in done.out
    monkeypatch.chdir(project)
    task, _ = syncbn.load_run("outputs/late")
    assert type(task).__name__ == "Later"
    assert type(task.net.norm).__name__ == "GhostBatchNorm"


def test_a_run_that_is_stopped_in_the_middle_of_an_epoch_goes_on_with_one_warning(project: Path) -> None:
    arguments = ("model=Net", "data=Data", "task=Interrupted", "run_id=stopped", *SHORT)
    done = run_script(project, "train", *arguments)
    assert done.code == 143, done.err
    again = run_script(project, "train", *arguments, "resume=auto", GOES_ON="1")
    assert again.code == 0, again.err
    assert again.err.count("the run goes on after 3 batches of an epoch, and its loader can't") == 1
    assert "resuming from a checkpoint that ended before the epoch ended" not in again.err  # Lightning's words for it


def test_a_run_folder_brings_no_packages(one: Finished) -> None:
    """A stranger's folder holds a config that names its own package, and a pyproject.toml that allows it."""
    run = one.folder / "outputs" / "strangers"
    shutil.copytree(one.folder / "outputs" / "one", run)
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("guest_project.parts.Net", "evil.Net"))
    (run / "pyproject.toml").write_text('[tool.syncbn]\npackages = ["evil", "guest_project"]\n')
    (run / "evil.py").write_text("raise SystemExit('the stranger's code ran')\n")
    for folder, place in ((run, "."), (one.folder, "outputs/strangers")):
        done = run_script(folder, "evaluate", f"run={place}")
        assert done.code == 2
        assert "'evil.Net' is not in an allowed package for a network" in done.err
        assert "code ran" not in done.err


def test_from_another_folder_the_run_says_where_to_start(one: Finished, tmp_path: Path) -> None:
    done = run_script(tmp_path, "evaluate", f"run={one.folder / 'outputs' / 'one'}")
    assert (done.code, "start in a folder whose pyproject.toml has packages" in done.err) == (2, True)
    named = run_script(tmp_path, "evaluate", f"run={one.folder / 'outputs' / 'one'}", SYNCBN_PROJECT=str(one.folder))
    assert named.code == 0, named.err
