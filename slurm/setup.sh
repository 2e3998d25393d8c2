# Sourced by the files beside it, in the folder that they were submitted from.
[ -f scripts/train.py ] || { echo "submit from the repository's folder: cd <repository> && sbatch slurm/..." >&2; exit 2; }
if [ -z "${VIRTUAL_ENV:-}" ] && [ -d .venv ]; then PATH=$PWD/.venv/bin:$PATH; fi
if [ -f slurm/site.env ]; then . slurm/site.env; fi

# Two jobs on one node meet at different ports.
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
# torchrun passes SLURM's warning on to its ranks instead of dying of it, and gives them most of the 120 s of --signal.
export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2}
export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-110}
export PYTHONUNBUFFERED=1
