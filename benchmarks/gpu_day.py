"""All GPU checks and timings in eight minutes: `bash benchmarks/gpu_day.sh` runs this and writes docs/results/gpu.md.

Each step is a process with its own time limit, and its result is written before the next one starts: a step that fails,
hangs or crashes doesn't affect the others.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "results" / "gpu.md"
_PYTEST = ("-m", "pytest", "-q", "-c", "benchmarks/gpu_day.ini", "--rootdir=.", "-p", "no:cacheprovider")
_SHOWN_LINES = 60


@dataclass(frozen=True)
class Step:
    """One step, run as a process.

    Attributes:
        name: heading on the page.
        command: arguments of `python`, or of `program`.
        limit_s: time limit in seconds.
        needs_gpu: whether to skip it without a GPU.
        environ: additional environment variables.
        program: program to run instead of Python; the step is skipped if it isn't installed.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    needs_gpu: bool = True
    environ: tuple[tuple[str, str], ...] = ()
    program: str | None = None


STEPS = (
    Step("The machine", ("-L",), 10, program="nvidia-smi"),
    Step("Kernels compiled for sm_80 and sm_90", (*_PYTEST, "tests/norm/kernels/test_triton_compiled.py"), 60, False),
    Step("Tests that need a GPU", (*_PYTEST, "-m", "gpu", "tests/norm", "tests/benchmarks/test_gpu.py"), 110),
    Step("The doctor", ("-m", "benchmarks.gpu_doctor"), 75, False),
    Step("Layers, ATen's kernels", ("-m", "benchmarks.gpu"), 60, environ=(("SYNCBN_KERNELS", "aten"),)),
    Step("Layers, Triton kernels", ("-m", "benchmarks.gpu"), 60, environ=(("SYNCBN_KERNELS", "triton"),)),
    Step("Steps of whole networks", ("-m", "benchmarks.gpu_steps"), 60),
    Step("Compiled steps", ("-m", "benchmarks.gpu_steps", "compiled"), 75),
    Step("Steps in CUDA graphs", ("-m", "benchmarks.gpu_steps", "graphs"), 40),
    Step(
        "Memory errors in the kernels",
        ("--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu_kernels"),
        60,
        environ=(("SYNCBN_KERNELS", "triton"), ("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")),
        program="compute-sanitizer",
    ),
)


def main(arguments: Sequence[str]) -> None:
    """Run all steps, or those whose headings contain one of the given words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", help="parts of headings; all where none is given")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    chosen = [step for step in STEPS if not given.steps or any(part in step.name for part in given.steps)]
    sections = [_head()]
    for step in chosen:
        print(f"{step.name} ...", flush=True)
        sections.append(f"## {step.name}\n\n{run(step)}\n")
        given.page.parent.mkdir(parents=True, exist_ok=True)
        given.page.write_text("\n".join(sections))
    print(f"page: {given.page}")


def run(step: Step) -> str:
    """Run a step, and return its section of the page."""
    if step.needs_gpu and not torch.cuda.is_available():
        return "Left out: torch finds no GPU."
    program = shutil.which(step.program) if step.program else sys.executable
    if program is None:
        return f"Left out: {step.program} isn't installed."
    command = [program, *step.command]
    environ = {**os.environ, **dict(step.environ)}
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=step.limit_s)
        verdict = "ended well" if process.returncode == 0 else f"ended with exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # kills its ranks, too
        output, _ = process.communicate()
        verdict = f"was ended after its limit of {step.limit_s:.0f} s"
    shown = " ".join([*(f"{name}={value}" for name, value in step.environ), step.program or "python", *step.command])
    tables = "\n".join(line for line in output.splitlines() if line.startswith(("|", "**"))).strip()
    last = "\n".join(output.strip().splitlines()[-_SHOWN_LINES:])
    text = f"`{shown}` {verdict} ({time.monotonic() - started:.0f} s).\n"
    if tables:
        text += f"\n{tables}\n"
    if not tables or process.returncode != 0:
        text += f"\n```\n{last}\n```\n"
    return text


def _head() -> str:
    if torch.cuda.is_available():
        name, cuda = torch.cuda.get_device_name(), torch.version.cuda
        machine = f"{name}, torch {torch.__version__}, CUDA {cuda}"
    else:
        machine = f"no GPU (a rehearsal), torch {torch.__version__}"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    at = f", commit {commit.stdout.strip()}" if commit.returncode == 0 else ""
    return (
        "# On a GPU\n\n"
        f"Written by `bash benchmarks/gpu_day.sh` on {datetime.now(UTC).date().isoformat()}: {machine}{at}.\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
