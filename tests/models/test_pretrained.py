"""Networks of timm and torchvision, without these packages and with them in a separate environment.

torchvision can't be imported with a CPU build of torch, and makes Lightning fail. So they are installed into a folder
that only the processes of these tests use, where torchvision's operators are declared first.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from syncbn.models.pretrained import from_timm, from_torchvision
from tests.cli.conftest import REPOSITORY, run_script

PACKAGES = ("torchvision==0.28.0", "timm==1.0.31")
DECLARED = """
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "callbacks=checkpoint")


@pytest.mark.parametrize(("package", "build"), [("timm", from_timm), ("torchvision", from_torchvision)])
def test_a_missing_package_is_named(package: str, build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # an import of it raises
    monkeypatch.setitem(sys.modules, f"{package}.models", None)
    with pytest.raises(ModuleNotFoundError, match=rf"model={package} needs {package} \(.*\): pip install {package}"):
        build()


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ImportError, match=r"can't import timm \(operator .*\); torchvision must be of the same build"):
        from_timm()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables with which processes find both packages, but no network."""
    folder = tmp_path_factory.mktemp("packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"can't install {' and '.join(PACKAGES)}: {done.stderr.strip()[-500:]}")
    (folder / "sitecustomize.py").write_text(DECLARED)
    caches = {"HF_HOME": str(folder / "hub"), "TORCH_HOME": str(folder / "torch")}
    return {"PYTHONPATH": f"{folder}:{REPOSITORY}", "HF_HUB_OFFLINE": "1", **caches}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_converted_network_computes_what_it_did(environment: dict[str, str], package: str) -> None:
    """The comparisons are those of `tests/models/pretrained_networks.py`."""
    command = [sys.executable, "-m", "tests.models.pretrained_networks", package]
    inherited = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{package}: all compared"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the trained weights are compared on the CPU")
@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_it_trains_on_two_ranks_from_the_command_line(
    environment: dict[str, str], package: str, tmp_path: Path
) -> None:
    arguments = [f"model={package}", "model.pretrained=false", "norm=sync", "trainer=ddp", "run_id=r", *SHORT]
    done = run_script(tmp_path, "train", *arguments, "trainer.accelerator=cpu", torchrun=2, **environment)
    assert done.code == 0, done.err
    assert "test accuracy:" in done.out
    assert "norm=sync" in done.out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_finished_run_is_evaluated_without_fetching_anything(environment: dict[str, str], tmp_path: Path) -> None:
    """Evaluation doesn't need the initial weights: the checkpoint has the trained ones."""
    cached = {**environment, "TORCH_HOME": str(tmp_path / "torch")}
    command = [sys.executable, "-m", "tests.models.pretrained_networks", "cache"]
    subprocess.run(command, env={"PATH": "/usr/bin:/bin"} | cached, check=True)
    arguments = ["model=torchvision", "norm=sync", "run_id=r", *SHORT, "trainer.accelerator=cpu"]
    done = run_script(tmp_path, "train", *arguments, **cached)
    assert done.code == 0, done.err
    for file in (tmp_path / "torch").rglob("*.pth"):
        file.write_bytes(b"damaged")
    done = run_script(tmp_path, "evaluate", "run=outputs/r", **cached)
    assert done.code == 0, done.err


def test_the_command_line_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise ModuleNotFoundError('No module named timm', name='timm')")
    done = run_script(tmp_path, "train", "model=timm", PYTHONPATH=str(tmp_path))
    assert done.code == 2
    assert done.err.splitlines() == ["error: model=timm needs timm (No module named timm): pip install timm"]
