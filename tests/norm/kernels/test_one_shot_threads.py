"""The C++ part of the one-shot exchange under the compiler's sanitizers, with threads instead of ranks.

Longer: python -m tests.norm.kernels.test_one_shot_threads 200000
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("one_shot_threads.cpp")
SANITIZERS = ["thread", "address,undefined"]
MESSAGES = 2000
# Ranks, messages in flight, and polls before a waiting rank yields its processor.
CASES = [(1, 1, 0), (2, 1, 2000), (2, 4, 0), (3, 2, 50), (4, 1, 0), (4, 4, 50), (8, 4, 0)]


def build(sanitizer: str, folder: Path) -> Path:
    """Compile the harness with a sanitizer."""
    program = folder / f"threads-{sanitizer}"
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "c++"
    flags = ["-std=c++17", "-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Werror", f"-fsanitize={sanitizer}"]
    subprocess.run([compiler, *flags, str(HARNESS), "-o", str(program)], check=True, timeout=120)
    return program


def run(program: Path, case: tuple[int, int, int], messages: int) -> subprocess.CompletedProcess[str]:
    """Exchange messages between threads."""
    world_size, in_flight, spins = case
    arguments = [str(program), *map(str, (world_size, in_flight, messages, spins))]
    environment = {**os.environ, "UBSAN_OPTIONS": "halt_on_error=1", "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_no_race_no_stray_access_and_no_wrong_sum(sanitizer: str, tmp_path: Path) -> None:
    program = build(sanitizer, tmp_path)
    for case in CASES:
        result = run(program, case, MESSAGES)
        assert (result.returncode, result.stdout) == (0, "0 wrong\n"), f"{case}: {result.stderr}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name in SANITIZERS:
            harness = build(name, Path(folder))
            for numbers in CASES:
                ended = run(harness, numbers, int(sys.argv[1]))
                print(f"{name} {numbers}: {ended.stdout.strip()} {ended.stderr}", flush=True)
