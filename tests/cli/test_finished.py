"""Commands that write files from a finished run: a recalibrated checkpoint, exports for inference."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import syncbn
from syncbn.cli import evaluate, export, inspect, recalibrate
from syncbn.data import DigitsDataModule
from syncbn.run.compose import config_of
from syncbn.run.errors import UserError
from syncbn.run.finished import FinishedRun
from syncbn.training.checkpoint import load_checkpoint
from tests.cli.conftest import Finished, run_script

QUIET = ("trainer.enable_progress_bar=false", "trainer.accelerator=cpu")


@pytest.fixture
def run(one_process_run: Finished, tmp_path: Path) -> Path:
    """Writable copy of a short run's folder."""
    assert one_process_run.code == 0, one_process_run.err
    folder = tmp_path / "one"
    shutil.copytree(one_process_run.folder / "outputs" / "one", folder)
    return folder


def test_recalibrate_writes_a_checkpoint_with_the_statistics_of_the_new_domain(run: Path) -> None:
    best = run / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    path = recalibrate.recalibrate([f"run={run}", "data=digits_shifted", "max_batches=20", *QUIET])
    assert path == run / "checkpoints" / "recalibrated.ckpt"
    assert best.read_bytes() == before

    expected, _ = syncbn.load_run(run)
    data = DigitsDataModule(augment=False, corruptions={"contrast": 0.4, "brightness": 0.5})
    syncbn.recalibrate(expected, data.train_dataloader(), max_batches=20)
    state = {key.removeprefix("net."): value for key, value in load_checkpoint(path)["state_dict"].items()}
    torch.testing.assert_close({key: state[key] for key in expected.state_dict()}, expected.state_dict())

    metrics = evaluate.evaluate([f"run={run}", f"checkpoint={path}", "data=digits_shifted", *QUIET])
    rows = data.test_indices
    with torch.no_grad():
        right = expected.eval()(0.4 * data.images[rows] + 0.5).argmax(1) == data.labels[rows]
    assert metrics["test/acc"] == pytest.approx(float(right.float().mean()), abs=1e-6)


def test_recalibrate_as_a_command_shows_both_accuracies_and_overwrites_nothing(run: Path, tmp_path: Path) -> None:
    done = run_script(tmp_path, "recalibrate", f"run={run}", "max_batches=3", *QUIET)
    assert done.code == 0, done.err
    assert done.out.count("test accuracy") == 2
    assert "recalibrating" in done.out
    again = run_script(tmp_path, "recalibrate", f"run={run}", "max_batches=3", *QUIET)
    assert again.code == 2
    assert "recalibrated.ckpt' exists and is not overwritten" in again.err
    assert again.err.count("\n") == 1


def test_every_exported_file_computes_the_networks_logits(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, program, onnx = export.export([f"run={run}"])
    assert "folded:        20 of 20 batch norms" in capsys.readouterr().out
    net, _ = syncbn.load_run(run)
    data = DigitsDataModule()
    images = data.images[data.test_indices[:7]]  # another number than the exporter saw
    with torch.no_grad():
        expected = net(images)
    torch.testing.assert_close(torch.export.load(program).module()(images), expected, rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert not [name for name in load_file(weights) if "running" in name]
    with pytest.raises(UserError, match="would be overwritten"):
        export.export([f"run={run}", "format=torch"])


def test_inspect_reports_what_the_function_does_and_the_drift_of_another_domain(run: Path) -> None:
    report = inspect.inspect([f"run={run}", "max_batches=3"])
    net, _ = syncbn.load_run(run)
    expected = syncbn.inspect(net, DigitsDataModule(batch_size=32).train_dataloader(), max_batches=3, steps=4)
    assert report.rows == expected.rows
    assert {w.identifier for w in report.warnings} >= {"slow-momentum", "stale-statistics"}  # after 4 steps
    assert (run / "norm_report" / "report.md").read_text() == report.to_markdown()
    assert (run / "norm_report" / "norms.png").read_bytes().startswith(b"\x89PNG")

    shifted = inspect.inspect([f"run={run}", "max_batches=3", "data=digits_shifted"])
    assert shifted.rows[0].drift is not None
    assert shifted.rows[0].drift > 0.5


def test_inspect_as_a_command_names_the_pages_of_its_warnings(run: Path, tmp_path: Path) -> None:
    done = run_script(tmp_path, "inspect", f"run={run}", "max_batches=1")
    assert done.code == 0, done.err
    assert "(docs/warnings/slow-momentum.md)" in done.out
    assert "│ net.bn1" in done.out or "│ bn1" in done.out


@pytest.mark.distributed
def test_verify_passes_a_synchronized_run_and_fails_another(run: Path, tmp_path: Path) -> None:
    done = run_script(tmp_path, "verify", f"run={run}", "data.batch_size=9")
    assert done.code == 0, done.err
    assert "ranks with 3 + 6 samples are one process" in done.out
    config = run / ".hydra" / "config.yaml"
    of_sync = ("sync_group: world", "fuse_activation: false", "memory: keep", "overlap: false")
    kept = [line for line in config.read_text().splitlines() if not line.strip().startswith(of_sync)]
    config.write_text("\n".join(kept).replace("  name: sync\n", "  name: batch\n"))
    done = run_script(tmp_path, "verify", f"run={run}", "data.batch_size=9", "ranks=3")
    assert done.code == 1
    assert "first in bn1: it is a BatchNorm that takes its rank's batch alone" in done.out


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (recalibrate.recalibrate, ["max_batches=0"], "max_batches: expected an integer at least 1 or null, got 0"),
        (recalibrate.recalibrate, ["data=digit"], "data=digit: no such choice; did you mean 'digits'"),
        (recalibrate.recalibrate, ["max_batch=3"], "max_batch: no such key; did you mean 'max_batches'"),
        (recalibrate.recalibrate, ["data.batchsize=3"], "data.batchsize: no such key; did you mean 'batch_size'"),
        (export.export, ["format=onxx"], "format: got 'onxx'; did you mean 'onnx'"),
        (evaluate.evaluate, ["norm=batch"], "norm: no such key"),
        (evaluate.evaluate, ["trainer.devices=2"], "trainer.devices=2: a finished run is opened in one process"),
        (recalibrate.recalibrate, ["trainer.strategy=ddp"], "trainer.strategy=ddp: a finished run is opened in one"),
    ],
)
def test_a_mistake_is_named(run: Path, command: object, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        command([f"run={run}", *arguments])


def test_data_of_more_classes_than_the_network_has_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")
    config = config_of(["data=digits", f"paths.output_dir={tmp_path}"])
    config.model = {"_target_": "torch.nn.Sequential"}
    net = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    finished = FinishedRun(tmp_path, tmp_path / "best.ckpt", config, DigitsDataModule(), net)
    with pytest.raises(
        ValueError, match="DigitsDataModule has 10 classes, and the network was trained for 3: take data"
    ):
        finished.built_task()
