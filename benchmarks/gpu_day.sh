#!/usr/bin/env bash
# Eight minutes on a machine with a GPU: tests, proof, times. It writes docs/results/gpu.md step by step, with the GPU's
# name. Needs Python 3.11 or newer with torch, numpy, pytest and hypothesis, as found; nothing is installed.
# Without a GPU every step runs as far as it can, or says why it doesn't.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} exec "${PYTHON:-python3}" -m benchmarks.gpu_day "$@"
