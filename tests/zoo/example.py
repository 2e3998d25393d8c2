"""Run a file of examples/ that needs this environment: torchrun -m tests.zoo.example examples/timm_loop.py"""

import runpy
import sys

from tests.zoo.detectors import declare_operators

if __name__ == "__main__":
    declare_operators()
    runpy.run_path(sys.argv[1], run_name="__main__")
