"""scripts/train.py as users start it: alone, under torchrun, as a sweep, and with mistakes."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import API_KEY, REPOSITORY, SHORT, Finished, run_script

PLOTS = {"accuracy.png", "confusion_matrix.png", "loss.png", "norm_statistics.png"}


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_process_leaves_one_complete_run_folder(one_process_run: Finished) -> None:
    assert one_process_run.code == 0, one_process_run.err
    run = one_process_run.folder / "outputs" / "one"
    assert {path.name for path in run.iterdir()} >= {".hydra", "checkpoints", "metrics.csv", "plots", "wandb"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert {path.name for path in (run / "plots").iterdir()} == PLOTS
    names = {"train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc"}
    assert names <= {name for row in rows(run) for name, value in row.items() if value}


def test_it_ends_with_accuracy_folder_and_plots(one_process_run: Finished) -> None:
    end = one_process_run.out[one_process_run.out.index("test accuracy:") :]
    (test,) = [float(row["test/acc"]) for row in rows(one_process_run.folder / "outputs" / "one") if row["test/acc"]]
    assert f"test accuracy: {100 * test:.2f} %" in end
    assert f"run folder:    {Path('outputs', 'one')}" in end
    assert all(plot in end for plot in PLOTS)


def test_the_wandb_run_is_offline_and_can_be_read_back(one_process_run: Finished) -> None:
    (record,) = (one_process_run.folder / "outputs" / "one" / "wandb").glob("offline-run-*/*.wandb")
    wandb = Path(sys.executable).with_name("wandb")
    command = [str(wandb), "leet", "inspect", "--summary", "--json", str(record)]
    summary = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    text = json.dumps(summary)
    assert record.name == "run-one.wandb"  # W&B's id is ours
    assert summary["config"]["norm"]["name"] == "sync"
    assert len(summary["config"]["git_commit"]) == 40
    assert {"val/acc", "test/acc"} <= set(summary["summary"])
    assert "predictions" in text
    assert '"me"' in text


@pytest.mark.distributed
def test_two_ranks_share_one_run_folder_and_count_each_test_sample_once(two_rank_run: Finished) -> None:
    assert two_rank_run.code == 0, two_rank_run.err
    (run,) = (two_rank_run.folder / "outputs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{8}", run.name)  # when it started, and which of that second's runs
    assert two_rank_run.out.count("test accuracy:") == 1
    assert {path.name for path in run.iterdir()} >= {".hydra", "checkpoints", "metrics.csv", "plots"}
    (test,) = [float(row["test/acc"]) for row in rows(run) if row["test/acc"]]
    correct = test * 359  # a fifth of 1,797
    assert correct == pytest.approx(round(correct), abs=1e-3)


@pytest.mark.distributed
def test_two_ranks_train_as_one_process_does_on_the_same_global_batches(
    one_process_run: Finished, two_rank_run: Finished
) -> None:
    (run,) = (two_rank_run.folder / "outputs").iterdir()
    losses = [
        [float(row["train/loss"]) for row in rows(folder) if row["train/loss"]]
        for folder in (one_process_run.folder / "outputs" / "one", run)
    ]
    assert len(losses[0]) == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_sweep_on_two_ranks_has_one_folder_with_a_numbered_one_a_job(sweep: Finished) -> None:
    assert sweep.code == 0, sweep.err
    assert [path.name for path in (sweep.folder / "outputs").iterdir()] == ["sweep"]
    jobs = sorted(path for path in (sweep.folder / "outputs" / "sweep").iterdir() if path.is_dir())
    assert [job.name for job in jobs] == ["0", "1"]
    for number, job in enumerate(jobs):
        assert {path.name for path in (job / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        (record,) = (job / "wandb").glob("offline-run-*/*.wandb")
        assert record.name == f"run-sweep-{number}.wandb"
    assert sweep.out.count("test accuracy:") == 2
    assert sweep.out.count("W&B, offline:  wandb sync outputs/sweep/") == 2


@pytest.mark.distributed
@pytest.mark.slow
def test_the_users_key_is_in_no_file_and_on_no_screen(sweep: Finished) -> None:
    key = API_KEY.encode()
    files = [path for path in sweep.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if key in path.read_bytes()] == []
    assert API_KEY not in sweep.out + sweep.err


@pytest.mark.slow
def test_a_run_is_not_overwritten_and_goes_on_with_resume_auto(tmp_path: Path) -> None:
    first = run_script(tmp_path, "train", "run_id=r", "test=false", *SHORT)
    assert first.code == 0, first.err
    config = (tmp_path / "outputs" / "r" / ".hydra" / "config.yaml").read_text()
    again = run_script(tmp_path, "train", "run_id=r", "norm=layer", *SHORT)
    assert again.code == 2
    assert "holds a run already: add resume=auto" in again.err
    assert (tmp_path / "outputs" / "r" / ".hydra" / "config.yaml").read_text() == config
    longer = run_script(tmp_path, "train", "run_id=r", "resume=auto", *SHORT, "trainer.max_epochs=2")
    assert longer.code == 0, longer.err
    epochs = [row["epoch"] for row in rows(tmp_path / "outputs" / "r") if row["train/loss"]]
    assert epochs == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["norm=group", "norm.groups=3"], r"groups must divide the 16 channels, got 3"),
        (["norm.sync_group=2"], r"sync_group=2 doesn't divide the 1 rank(s): take one of [1], 'node' or 'world'"),
        (["data.batch_size=5000"], r"5000"),
        (["resume=nowhere.ckpt"], r"resume: no checkpoint 'nowhere.ckpt'"),
        (["trainer.num_nodes=2"], r"torchrun --nnodes 2"),
        (["trainer.val_check_interval=50"], r"trainer.val_check_interval=50 is more than the 34 batches of an epoch"),
        (["model.num_classes=3"], "model.num_classes=3, and the data has 10: leave it out, or give 10"),
        (["model.in_channels=3"], "model.in_channels=3, and the data has 1: leave it out, or give 1"),
        (["model=vit", "model.image_size=16"], "model.image_size=16, and the data has 8 x 8: leave it out"),
        (["trainer.val_check_interval=0"], "trainer.val_check_interval: expected an integer at least 1 or a number"),
        (["optimizer.lr=inf"], "optimizer.lr: expected a number above 0, got inf"),
        (["optimizer=adamw", "trainer.accelerator=gpu"], r"finds no GPU: take trainer.accelerator=cpu"),
        (["output_root=/dev/null/x"], r"can't write to output_root=/dev/null/x"),
        (["model=dcgan"], "ClassificationTask can't train a network of the class DCGAN: add task=gan"),
        (["model=fcn_resnet18"], "can't train a network of the class FCN: add task=segmentation"),
        (["callbacks.early_stopping.monitor=val/los"], r"did you mean 'val/loss'?"),
        (["trainer.limit_val_batches=0"], r"leaves validation out: add callbacks.checkpoint.monitor=train/loss"),
    ],
)
def test_a_mistake_that_only_building_finds_is_one_line_too(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run_script(tmp_path, "train", *arguments, CUDA_VISIBLE_DEVICES="")
    assert done.code == 2
    assert "Traceback" not in done.err
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not list((tmp_path / "outputs").glob("*"))  # no half-made run folder


@pytest.mark.distributed
def test_a_launcher_with_another_world_than_the_trainers_is_refused(tmp_path: Path) -> None:
    done = run_script(tmp_path, "train", torchrun=2)
    assert done.code != 0
    assert done.err.count("add trainer=ddp") == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.distributed
def test_a_mistake_that_both_ranks_find_is_told_once(tmp_path: Path) -> None:
    done = run_script(tmp_path, "train", "trainer=ddp", "norm=group", "norm.groups=3", torchrun=2)
    assert done.code != 0
    assert done.err.count("groups must divide the 16 channels") == 1
    assert not list((tmp_path / "outputs").glob("*"))


def test_the_screen_is_calm(one_process_run: Finished) -> None:
    """Not a terminal: what is trained, a line an epoch, what came out, and nothing of other packages."""
    lines = one_process_run.out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["network", "processes", "run folder"]
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 1
    assert re.match(
        r"epoch 1/1  train/acc 0\.\d{4}  train/loss \d+\.\d{4} .* val/loss \d+\.\d{4}  \d+\.\d s$", epochs[0]
    )
    assert any(re.match(r"training:      1 epoch\(s\), 4 steps in \d+\.\d s$", line) for line in lines)
    assert len(lines) <= 12
    assert not re.search(
        "GPU available|litlogger|Loading|Restoring|FLOPs|anonymous", one_process_run.out + one_process_run.err
    )


def test_cfg_help_and_info_go_on_working(tmp_path: Path) -> None:
    shown = run_script(tmp_path, "train", "--cfg", "job", "--resolve", "norm=group", SYNCBN_OUTPUT_ROOT="/scratch/me")
    assert shown.code == 0
    assert "name: group" in shown.out
    assert "output_root: /scratch/me" in shown.out
    assert "norm: adaptive, batch" in run_script(tmp_path, "train", "--help").out
    assert run_script(tmp_path, "train", "--info", "config").code == 0


def test_without_the_trainers_packages_a_script_says_which_line_installs_them(tmp_path: Path) -> None:
    bare = (
        "import importlib.util, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name in ('hydra', 'lightning') else found(name, *a)\n"
        "from syncbn.cli import run\n"
        "run('train')\n"
    )
    done = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'pip install "syncbn[train]"' in done.stderr


@pytest.mark.distributed
@pytest.mark.slow
def test_ddp_sim_trains_on_two_spawned_ranks(tmp_path: Path) -> None:
    done = run_script(tmp_path, "train", "run_id=sim", "trainer=ddp_sim", "norm=sync", *SHORT)
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "outputs" / "sim" / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
    }
    assert done.out.count("test accuracy:") == 1
    assert "0 steps" not in done.out


def test_the_scripts_are_a_few_lines_and_ci_can_be_run() -> None:
    scripts = list((REPOSITORY / "scripts").glob("*.py"))
    assert {script.stem for script in scripts} >= {"train", "evaluate", "compare"}
    assert all(len(script.read_text().splitlines()) <= 4 for script in scripts)
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)


def test_the_scripts_folder_shadows_no_module() -> None:
    """Its inspect.py would; `traceback`, too, imports `inspect` from Python 3.14 on."""
    code = "import sys; sys.path.insert(0, 'scripts'); import syncbn.cli, inspect; print(inspect.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).parent != REPOSITORY / "scripts"


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another_and_says_what_is_new(
    one_process_run: Finished, tmp_path: Path
) -> None:
    checkpoint = one_process_run.folder / "outputs" / "one" / "checkpoints" / "last.ckpt"
    weights = f"model.weights={checkpoint}"
    done = run_script(tmp_path, "train", weights, "train=false", "test=false", "+model.num_classes=12", *SHORT)
    assert done.code == 0, done.err
    assert re.search(r"weights: +\d+ tensors from .*last.ckpt; fc.weight, fc.bias made anew, for 12 classes", done.out)
    wrong = run_script(tmp_path, "train", weights, *SHORT, "model.width=8")
    assert wrong.code == 2
    assert "of another shape: conv1.weight ((4, 1, 3, 3) in the file, (8, 1, 3, 3) in the network)" in wrong.err
