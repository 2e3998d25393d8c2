"""The loggers that need more than Lightning's arguments: one folder for a run, and W&B without an account."""

import csv
import netrc
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning_utilities.core.rank_zero import rank_zero_only

from syncbn.norm.core.messages import first_line
from syncbn.training.loggers_options import WandbOptions as Options


class _Appending(ExperimentWriter):
    """Goes on with the metrics.csv it finds, where Lightning's deletes it."""

    def _check_log_dir_exists(self) -> None:
        if Path(self.metrics_file_path).is_file():
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])


class RunFolderCSVLogger(CSVLogger):
    """`metrics.csv` right in the run folder, row by row, so that a killed run has lost none; a resumed run adds to it.

    Args:
        save_dir: the run folder.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_only
    def experiment(self) -> Any:
        """The writer of metrics.csv; on ranks other than 0 there is none."""
        if self._experiment is None:
            self._experiment = _Appending(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def cut_at(self, step: int) -> None:
        """Drop the rows of `step` and later: the run goes on from a checkpoint before them, and logs them again."""
        path = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        if not path.is_file():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            keys, rows = reader.fieldnames or [], [row for row in reader if int(row["step"]) < step]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows(rows)


def wandb_logger(
    save_dir: str,
    run_id: str,
    project: str,
    offline: bool | None = Options.offline,
    entity: str | None = Options.entity,
    group: str | None = Options.group,
    job_type: str | None = Options.job_type,
    tags: list[str] | None = Options.tags,
    log_model: bool | Literal["all"] = Options.log_model,
    init_timeout_s: float = Options.init_timeout_s,
) -> WandbLogger:
    """Lightning's W&B logger for a run of ours: its id is the run's, so that a resumed run goes on.

    Args:
        save_dir: the run folder; W&B's files are in `wandb/` there.
        run_id: the run's id.
        project: W&B's project.
        offline: None follows `WANDB_MODE` and, where that is unset, is offline unless the user is logged in.
        entity: the user's or team's name; None is the account's default.
        group: runs to show together.
        job_type: the kind of run.
        tags: words to find the run by.
        log_model: checkpoints as artifacts: False, True (the best and the last) or "all".
        init_timeout_s: seconds to try to reach W&B; then the run is logged offline.
    """
    import wandb

    Path(save_dir).mkdir(parents=True, exist_ok=True)
    logger = _OfflineIfUnreachable(
        save_dir=save_dir,
        id=run_id,
        name=run_id,
        resume="allow",
        offline=is_offline() if offline is None else offline,
        project=project,
        entity=entity,
        group=group,
        job_type=job_type,
        tags=tags,
        log_model=log_model,
        # quiet: its summary of the metrics would bury ours. What can't be sent when the run is over stays on the disk.
        settings=wandb.Settings(quiet=True, init_timeout=init_timeout_s, finish_timeout=300),
    )
    logger._wandb_init.pop("anonymous", None)  # which Lightning always passes on, and W&B warns of
    return logger


class _OfflineIfUnreachable(WandbLogger):
    """W&B's logger, whose run is an offline one where W&B doesn't answer: no reason to end a training."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run."""
        import wandb

        try:
            return super().experiment
        except wandb.errors.CommError as error:
            print(
                f"W&B can't be reached ({first_line(error)}): this run is logged offline, and sent later by "
                f"wandb sync {self._wandb_init['dir']}/wandb/offline-run-*",
                file=sys.stderr,
                flush=True,
            )
            wandb.teardown()  # its service holds on to the run's id
            self._offline, self._wandb_init["mode"] = True, "offline"
            return super().experiment


def is_offline() -> bool:
    """Whether W&B should keep its files to itself: `WANDB_MODE` says so or, without it, nobody is logged in."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode not in ("online", "shared")
    return not (os.environ.get("WANDB_API_KEY") or _has_netrc_entry())


def _has_netrc_entry() -> bool:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def log_config(logger: Logger, config: dict[str, Any], commit: str | None) -> None:
    """Send the run's config and git commit to a logger; beside metrics.csv the config lies in .hydra already."""
    if not isinstance(logger, CSVLogger):
        logger.log_hyperparams({**config, "git_commit": commit})


def finish(loggers: Iterable[Logger]) -> None:
    """End W&B's run, which would otherwise take in the next job of a sweep."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
