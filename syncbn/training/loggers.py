"""Loggers that write to the run folder, and W&B without an account."""

import csv
import io
import netrc
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning_utilities.core.rank_zero import rank_zero_only

from syncbn.launch.files import replace_text
from syncbn.norm.core.messages import first_line
from syncbn.training.loggers_options import WandbOptions as Options


class _Appending(ExperimentWriter):
    """CSV writer that continues an existing metrics.csv instead of deleting it, and leaves it whole on a full disk."""

    def save(self) -> None:
        """Write the rows there are.

        Raises:
            OSError: the disk is full, read-only or broken; the file is what it was before.
        """
        path = Path(self.metrics_file_path)
        keys, size = list(self.metrics_keys), path.stat().st_size if path.is_file() else None
        try:
            super().save()
        except OSError:
            # The logger saves once more when the run ends: not behind half a row, nor more cells than the header has.
            self.metrics_keys = keys
            with suppress(OSError):
                if size is None:
                    path.unlink()
                elif path.stat().st_size > size:
                    os.truncate(path, size)
            raise

    def _check_log_dir_exists(self) -> None:
        if Path(self.metrics_file_path).is_file():
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="") as file:
            _replace_rows(Path(self.metrics_file_path), fieldnames, list(csv.DictReader(file)))


class RunFolderCSVLogger(CSVLogger):
    """Logs to `metrics.csv` in the run folder, row by row, so that a killed run loses none; resumed runs append.

    Args:
        save_dir: the run folder.

    Attributes:
        check: called before rows are written; it raises where the folder isn't this run's any more.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=1)
        self.check: Callable[[], None] | None = None
        self._there: tuple[int, list[set[str]]] = (-1, [])

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Take a row, unless it is one that a resumed run repeats, such as of the validation that it was killed in."""
        last, rows = self._there
        if step == last and (names := metrics.keys() | {"step"}) in rows:
            rows.remove(names)
            return
        super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Write the rows there are, where the folder is still this run's."""
        if self.check is not None:
            self.check()
        super().save()

    @property
    @rank_zero_only
    def experiment(self) -> Any:
        """Writer of metrics.csv; only on rank 0."""
        if self._experiment is None:
            self._experiment = _Appending(log_dir=self.log_dir)
        return self._experiment

    def has_row(self, step: int, names: Iterable[str]) -> bool:
        """Whether a row of `step` has a value of each name."""
        names = list(names)
        return any(row["step"] == str(step) and all(map(row.get, names)) for row in self._read()[1])

    @rank_zero_only
    def cut_at(self, step: int) -> None:
        """Drop the rows from `step` on: a resumed run logs them again. What it repeats of those before, it doesn't."""
        if not self._path.is_file():
            return
        keys, rows = self._read()
        # A row that was cut short has no step, or cells missing at its end; two of them in one line are too long.
        rows = [row for row in rows if None not in (*row, *row.values()) and row.get("step", "").isdigit()]
        rows = [row for row in rows if int(row["step"]) < step]
        self._there = step - 1, [{k for k in keys if row[k]} for row in rows if int(row["step"]) == step - 1]
        _replace_rows(self._path, keys, rows)

    @property
    def _path(self) -> Path:
        return Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Columns and rows of metrics.csv; none without the file."""
        if not self._path.is_file():
            return [], []
        with self._path.open(newline="") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or []), list(reader)


def _replace_rows(path: Path, keys: list[str], rows: list[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, keys)
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue())


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
    finish_timeout_s: float = Options.finish_timeout_s,
) -> WandbLogger:
    """Make Lightning's W&B logger with the run's id, so that a resumed run continues it.

    Args:
        save_dir: run folder; W&B's files are in its `wandb/`.
        run_id: id of the run.
        project: W&B project.
        offline: None follows `WANDB_MODE` or, if that is unset, is offline unless the user is logged in.
        entity: name of the user or team; None for the account's default.
        group: group of runs to show together.
        job_type: type of the run.
        tags: tags of the run.
        log_model: checkpoints as artifacts: False, True (the best and the last) or "all".
        init_timeout_s: seconds to try to reach W&B; then the run is logged offline.
        finish_timeout_s: seconds to send what is left at the end; the rest stays on the disk, for `wandb sync`.

    W&B's own variables mean what W&B says: `WANDB_MODE=disabled`, `WANDB_NAME`, `WANDB_NOTES`, `WANDB_DIR`,
    `WANDB_RUN_ID`, `WANDB_RESUME`, ...

    Raises:
        ValueError: the run isn't to be offline, and nobody is logged in; a name, an id or a tag that W&B doesn't take.
    """
    run_id, resume = os.environ.get("WANDB_RUN_ID") or run_id, os.environ.get("WANDB_RESUME") or "allow"
    mode = os.environ.get("WANDB_MODE") or None
    settings = _settings(
        **({} if mode is None else {"mode": mode}),
        project=project,
        run_id=run_id,
        resume=resume,
        run_tags=None if tags is None else tuple(tags),
        quiet=True,  # its summary of the metrics would hide ours
        init_timeout=init_timeout_s,
        finish_timeout=finish_timeout_s,
        finish_timeout_raises=True,
    )
    disabled = mode == "disabled"
    offline = not disabled and (is_offline() if offline is None else offline)
    if not offline and not disabled and not _is_logged_in():
        raise ValueError(
            "logger.wandb: nobody is logged in to W&B: run wandb login, set WANDB_API_KEY, or take "
            "logger.wandb.offline=true"
        )
    extra: Any = {"mode": "disabled"} if disabled else {}
    save_dir = os.environ.get("WANDB_DIR") or save_dir
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    logger = RunFolderWandbLogger(
        save_dir=save_dir,
        id=run_id,
        name=os.environ.get("WANDB_NAME") or run_id,
        notes=os.environ.get("WANDB_NOTES"),
        resume=resume,
        offline=offline,
        **extra,
        project=project,
        entity=entity,
        group=group,
        job_type=job_type,
        tags=tags,
        log_model=log_model,
        settings=settings,
    )
    logger._wandb_init.pop("anonymous", None)  # always passed by Lightning, and deprecated in W&B
    return logger


def _settings(**values: Any) -> Any:
    """W&B's settings, checked before the run begins.

    Raises:
        ValueError: W&B doesn't take one.
    """
    import wandb
    from pydantic import ValidationError

    try:
        return wandb.Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"logger.wandb: {'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"
        ) from None
    except wandb.errors.UsageError as error:
        raise ValueError(f"logger.wandb: {first_line(error)}") from None


class RunFolderWandbLogger(WandbLogger):
    """W&B logger that continues offline if W&B doesn't respond, instead of ending the training.

    Attributes:
        check: called before the W&B run is used; it raises where the folder isn't this run's any more. W&B makes the
            folders anew that a table or an image needs.
    """

    check: Callable[[], None] | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run."""
        import wandb

        if self.check is not None:
            self.check()
        try:
            return super().experiment
        except wandb.errors.CommError as error:
            print(
                f"W&B can't be reached ({first_line(error)}): this run is logged offline, and sent later by "
                f"wandb sync {shlex.quote(str(self._wandb_init['dir']))}/wandb/offline-run-*",
                file=sys.stderr,
                flush=True,
            )
            wandb.teardown()  # its service keeps the run's id
            self._offline, self._wandb_init["mode"] = True, "offline"
            return super().experiment


def is_offline() -> bool:
    """Whether W&B runs offline: by `WANDB_MODE` or, without it, if the user isn't logged in."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode not in ("online", "shared", "run")
    return not _is_logged_in()


def _is_logged_in() -> bool:
    return any(map(os.environ.get, ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))) or _has_netrc_entry()


def _has_netrc_entry() -> bool:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def log_config(logger: Logger, config: dict[str, Any], commit: str | None) -> None:
    """Log the run's config and git commit; not to the CSV logger, since the run folder has .hydra."""
    if not isinstance(logger, CSVLogger):
        logger.log_hyperparams({**config, "git_commit": commit})


def finish(loggers: Iterable[Logger]) -> None:
    """Finish W&B's run, which would otherwise include the next job of a sweep, and say so if W&B didn't take all."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            try:
                run.finish()
            except TimeoutError:
                print(
                    "W&B hasn't taken all of this run; nothing is lost: send the rest by wandb sync "
                    f"{shlex.quote(str(Path(run.dir).parent))}",
                    file=sys.stderr,
                    flush=True,
                )
