"""Tests of the GPU script without a GPU, and with steps that fail, hang and crash."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_day
from benchmarks.gpu_day import REPOSITORY, STEPS, Step, main, run

WITHOUT_THE_REST = """
import sys

for name in ("lightning", "hydra", "omegaconf", "rich", "wandb", "torchmetrics", "sklearn", "matplotlib", "playwright",
             "scipy", "onnx", "datasets", "pytest_timeout"):
    sys.modules[name] = None  # as if it weren't installed
import pytest
sys.exit(pytest.main({arguments}))
"""


def test_the_limits_add_up_to_about_eight_minutes() -> None:
    assert sum(step.limit_s for step in STEPS) <= 10.5 * 60  # they are limits; a GPU needs less
    assert len({step.name for step in STEPS}) == len(STEPS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is done without a GPU")
def test_without_a_gpu_every_step_says_why_it_is_left_out(tmp_path: Path) -> None:
    main(["--page", str(tmp_path / "gpu.md"), *[step.name for step in STEPS if step.needs_gpu]])

    page = (tmp_path / "gpu.md").read_text()
    assert "no GPU (a rehearsal)" in page
    for step in STEPS:
        if step.needs_gpu:
            assert f"## {step.name}\n\nLeft out: torch finds no GPU.\n" in page


def test_a_step_that_fails_hangs_or_dies_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(100)'])"
    steps = (
        Step("Fails", ("-c", "raise ValueError('here')"), 20, needs_gpu=False),
        Step("Hangs with a child", ("-c", child), 2, needs_gpu=False),
        Step("Dies", ("-c", "import os; os.abort()"), 20, needs_gpu=False),
        Step("Missing", (), 20, needs_gpu=False, program="no-such-program"),
        Step("Works", ("-c", "print('| a |'); print(7 * 11)"), 20, needs_gpu=False),
    )
    monkeypatch.setattr(gpu_day, "STEPS", steps)
    main(["--page", str(tmp_path / "gpu.md")])

    sections = (tmp_path / "gpu.md").read_text().split("## ")
    assert [section.splitlines()[0] for section in sections[1:]] == [step.name for step in steps]
    failed, hung, died, missing, works = sections[1:]
    assert "ended with exit code 1" in failed
    assert "ValueError: here" in failed
    assert "was ended after its limit of 2 s" in hung
    assert "ended with exit code -6" in died
    assert "Left out: no-such-program isn't installed." in missing
    assert "ended well" in works
    assert "| a |" in works
    assert "77" not in works


def test_variables_of_a_step_are_set_and_shown() -> None:
    text = run(Step("x", ("-c", "import os; print('|', os.environ['A'], '|')"), 20, False, (("A", "b"),)))
    assert text.startswith("`A=b python -c")
    assert "| b |" in text


@pytest.mark.parametrize("module", ["benchmarks.gpu_steps", "benchmarks.gpu_kernels"])
def test_without_a_gpu_a_part_says_so_in_one_line(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if not torch.cuda.is_available():
        assert done.returncode == 2
        assert done.stderr == f"{module} needs a CUDA GPU, and torch finds none\n"


def test_the_gpus_tests_are_collected_with_pytest_and_hypothesis_alone() -> None:
    """The GPU machine has no pytest-timeout, Lightning, Hydra or rich."""
    (step,) = (step for step in STEPS if step.name == "Tests that need a GPU")
    arguments = ["--collect-only", *step.command[2:]]
    command = [sys.executable, "-c", WITHOUT_THE_REST.format(arguments=arguments)]
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "test_sync_cuda.py" in done.stdout
