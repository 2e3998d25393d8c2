"""Start-up time: a process that imports syncbn compared with one that imports torch."""

import subprocess
import sys
import time

from benchmarks.rows import Row, paired

REPEATS = 11


def measure() -> list[Row]:
    """Time whole processes, in turns."""
    pairs = [(_milliseconds("syncbn"), _milliseconds("torch")) for _ in range(REPEATS + 1)][1:]
    used = [(_milliseconds("syncbn; syncbn.SyncBatchNorm"), _milliseconds("torch")) for _ in range(REPEATS)]
    area = "a process that imports"
    return [
        paired(area, "import syncbn", "import torch", "ms", pairs, 1.02),
        paired(area, "import syncbn, and look up SyncBatchNorm", "import torch", "ms", used),
    ]


def _milliseconds(what: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {what}"], check=True)
    return 1e3 * (time.perf_counter() - start)
