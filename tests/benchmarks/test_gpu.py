"""Test of the GPU benchmark."""

import os
import subprocess
import sys

import pytest
import torch


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "benchmarks.gpu needs a CUDA GPU, and torch finds none\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_comparison_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu

    monkeypatch.setattr(gpu, "IMAGES", (2,))
    monkeypatch.setattr(gpu, "REPEATS", 3)
    assert [row.beside for row in gpu.measure()] == [
        "copying the least",
        "torch.nn.SyncBatchNorm",
        "cuDNN, unfused",
        "cuDNN, unfused",
    ]
