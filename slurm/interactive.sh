#!/bin/bash
# A run in this terminal:  slurm/interactive.sh [salloc's options] -- [key=value ...]
set -euo pipefail
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
if [ $# -gt 0 ]; then shift; fi
exec salloc --ntasks-per-node=2 "${options[@]}" bash -c \
    '. slurm/setup.sh && exec srun --kill-on-bad-exit=1 python scripts/train.py trainer=ddp "$@"' bash "$@"
