"""Top level of a composed config."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from syncbn.norm.core.options import Count, Range, option, required

Node = dict[str, Any]


@dataclass
class Paths:
    """Folders that a run writes to."""

    output_dir: str = required("the run's folder")


@dataclass
class Chosen:
    """Which batch norms of a finished network a norm takes the place of: beside the norm's own options."""

    include: str | list[str] | None = option(None, "globs of those to convert; null: all")
    exclude: str | list[str] | None = option(None, "globs of those that stay")


@dataclass
class Main:
    """Top-level keys, and the groups, each checked by its `name` or `_target_`.

    `conf/train.yaml` has the values. Keys with a default are missing in the oldest run folders.
    """

    norm: Node = required("a group")
    model: Node = required("a group")
    data: Node = required("a group")
    optimizer: Node = required("a group")
    trainer: Node = required("a group")
    task: Node = required("a group")
    task_name: str = required("what a run is for, in W&B")
    tags: list[str] = required("words to find a run by, in W&B")
    seed: Annotated[int, Range(low=0, high=2**32 - 1)] = required("of initialization, order, augmentation and dropout")
    train: bool = required("whether there is a training")
    test: bool = required("whether there is a test")
    resume: str | None = required("auto, or a checkpoint to go on from")
    output_root: str = required("where run folders are")
    run_id: str = required("the name of the run's folder")
    paths: Paths = required("where a run writes to")
    threads: Count | Literal["auto"] = required("CPU threads of each rank")
    elastic: Literal["keep", "refuse"] = option(
        "keep", "resumed on another number of ranks: keep the global batch size, or refuse"
    )
    nan_policy: Literal["stop", "skip", "rewind"] = option(
        "stop", "on a non-finite loss: stop, skip the step, or rewind to the last checkpoint and skip the batch"
    )
    check_ranks_every_n_steps: Count | None = option(None, "steps between comparisons of all values between ranks")
    optimized_metric: str | None = option(None, "metric reported to an optimizing sweeper; null: val/loss")
    scheduler: Node | None = option(None, "a group")
    logger: Node | None = option(None, "a group")
    callbacks: Node | None = option(None, "a group")
