"""Commands on a finished run's folder: evaluate, load_run, compare."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

import syncbn
from syncbn.cli import compare, evaluate
from syncbn.run.errors import UserError
from tests.cli.conftest import Finished, run_script


def run_of(finished: Finished) -> Path:
    (run,) = (finished.folder / "outputs").iterdir()
    return run


def logged_test_accuracy(run: Path) -> float:
    with (run / "metrics.csv").open(newline="") as file:
        (accuracy,) = [float(row["test/acc"]) for row in csv.DictReader(file) if row["test/acc"]]
    return accuracy


def test_evaluate_gives_the_runs_own_test_accuracy_from_its_folder_alone(
    one_process_run: Finished, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run_of(one_process_run), moved)
    done = run_script(tmp_path, "evaluate", f"run={moved}", "trainer.enable_progress_bar=false")
    assert done.code == 0, done.err
    assert f"test accuracy: {100 * logged_test_accuracy(moved):.2f} %" in done.out


@pytest.mark.distributed
def test_one_process_evaluates_a_two_rank_run_to_the_same_accuracy(two_rank_run: Finished) -> None:
    run = run_of(two_rank_run)
    metrics = evaluate.evaluate([f"run={run}", "trainer.enable_progress_bar=false"])
    assert metrics["test/acc"] == pytest.approx(logged_test_accuracy(run), abs=1e-6)


@pytest.mark.distributed
def test_load_run_gives_the_network_and_the_config(two_rank_run: Finished) -> None:
    from syncbn.data import DigitsDataModule

    run = run_of(two_rank_run)
    model, config = syncbn.load_run(run)
    assert not model.training
    assert config.norm.name == "sync"
    assert config.paths.output_dir == str(run)
    data = DigitsDataModule()
    rows = data.test_indices
    with torch.no_grad():
        accuracy = (model(data.images[rows]).argmax(1) == data.labels[rows]).float().mean()
    assert float(accuracy) == pytest.approx(logged_test_accuracy(run), abs=1e-6)


@pytest.mark.parametrize("arguments", [[], ["outputs/x"], ["run=/nowhere"], ["run=."]])
def test_evaluate_refuses_what_is_no_run(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run: missing|run=outputs|no folder|is not the folder of a run"):
        evaluate.evaluate(arguments)


def test_load_run_says_what_a_folder_lacks(one_process_run: Finished, tmp_path: Path) -> None:
    run = run_of(one_process_run)
    with pytest.raises(ValueError, match="no folder"):
        syncbn.load_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"it has no \.hydra"):
        syncbn.load_run(tmp_path)
    with pytest.raises(ValueError, match="it is a sweep, give one of its jobs"):
        syncbn.load_run(run.parent)
    shutil.copytree(run / ".hydra", tmp_path / ".hydra")
    with pytest.raises(ValueError, match=r"has no checkpoints/best\.ckpt"):
        syncbn.load_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    whole = (run / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        syncbn.load_run(tmp_path)


def test_load_run_checks_a_config_that_somebody_changed(one_process_run: Finished, tmp_path: Path) -> None:
    shutil.copytree(run_of(one_process_run) / ".hydra", tmp_path / ".hydra")
    config = tmp_path / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("syncbn.data.DigitsDataModule", "os.system"))
    with pytest.raises(ValueError, match=r"data._target_: 'os.system' is not in an allowed package"):
        syncbn.load_run(tmp_path)
    for broken in (b"{{{", b"\xff\xfe\x00", b"a: ${"):
        config.write_bytes(broken)
        with pytest.raises(ValueError, match="can't be read"):
            syncbn.load_run(tmp_path)


@pytest.mark.distributed
@pytest.mark.slow
def test_compare_tabulates_and_plots_runs_and_the_jobs_of_sweeps(
    one_process_run: Finished, sweep: Finished, tmp_path: Path
) -> None:
    folders = [str(run_of(one_process_run)), str(run_of(sweep)), str(tmp_path)]
    done = run_script(tmp_path, "compare", *folders, "plot=figures/runs.png")
    assert done.code == 0, done.err
    table = {line.split("│")[1].strip(): line for line in done.out.splitlines() if line.startswith("│")}
    assert set(table) == {"one", "sweep/0", "sweep/1"}
    assert "layer" in table["sweep/1"]
    assert f"{logged_test_accuracy(run_of(one_process_run)):.4f}" in table["one"]
    assert (tmp_path / "figures" / "runs.png").read_bytes().startswith(b"\x89PNG")


def test_compare_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.find_runs([tmp_path]) == []
    done = run_script(tmp_path, "compare", str(tmp_path))
    assert done.code == 2
    assert "no finished run in" in done.err
