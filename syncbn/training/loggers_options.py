"""Options of the loggers."""

from dataclasses import dataclass
from typing import Literal

from syncbn.norm.core.options import Positive, option, required


@dataclass
class CSVOptions:
    """metrics.csv in the run folder."""

    save_dir: str = required("the run folder")


@dataclass
class WandbOptions:
    """Weights & Biases; a resumed run keeps its id."""

    save_dir: str = required("the run folder; W&B's files are in wandb/ there")
    run_id: str = required("the run's id")
    project: str = required("W&B's project")
    offline: bool | None = option(None, "null: by WANDB_MODE if it is set, else offline unless logged in")
    entity: str | None = option(None, "name of the user or team; null: the account's default")
    group: str | None = option(None, "group of runs to show together")
    job_type: str | None = option(None, "type of the run")
    tags: list[str] | None = option(None, "tags of the run")
    log_model: bool | Literal["all"] = option(
        False, "true: the best and last checkpoints as artifacts; all: each of them"
    )
    init_timeout_s: Positive = option(90.0, "seconds to try to reach W&B; then the run is logged offline")
    finish_timeout_s: Positive = option(300.0, "seconds to send what is left at the end; the rest stays on the disk")


OPTIONS = {"RunFolderCSVLogger": CSVOptions, "wandb_logger": WandbOptions}
